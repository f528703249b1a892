"""A folder of images as a data set: files are read and decoded as they are asked for.

It may have any layout that ``list_source`` knows: nothing need be converted first. Importing this
module imports no torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrot.data.dataset import BadSampleError, Encoded
from fastrot.data.images.decode import DecodeError, decode_image, image_size, measure
from fastrot.data.sources.cifar import SIDE as CIFAR_SIDE
from fastrot.data.sources.find import SourceKind, list_source
from fastrot.errors import StorageError


class FolderDataset:
    """The images of a folder; see the ``Dataset`` contract. EXIF orientation is applied.

    The digest covers names, sizes in bytes, labels and class names, so that opening a million
    files reads none of them. An image exchanged for another one of exactly the same size goes
    unseen when a run is resumed; times of modification would show it, but also change when a
    data set is copied to another machine. A ``.beton`` file has checksums and no such gap.

    Args:
        path: of the data set.
        kind: its layout, as for ``list_source``: class folders, or images without labels.
        split: which part of a data set that has parts.
        follow_symlinks: also follow links that lead out of the folder.

    Raises:
        UsageError: no such folder, another layout, or a split that is missing or not there.
        BadDataError: no images in it, or damaged lists.
        StorageError: it cannot be read.
    """

    applies_exif = True

    def __init__(
        self,
        path: str | Path,
        *,
        kind: SourceKind = "folder",
        split: str | None = None,
        follow_symlinks: bool = False,
    ) -> None:
        source = list_source(path, kind=kind, split=split, follow_symlinks=follow_symlinks)
        self.path = Path(path if split is None else f"{path}:{split}")
        self.labels = source.labels
        self.class_names = source.class_names
        self.unlabelled = self.fields = ""
        self.left_out = str(source.left_out)
        self.digest = self.origin = source.digest
        self.byte_sizes, self.stored_bytes = source.sizes, int(source.sizes.sum())
        self._source = source
        # 0: header not read yet. CIFAR's binary version has no headers.
        known = CIFAR_SIDE if source.kind == "cifar" else 0
        self._sizes = np.full((len(source), 2), known, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._source)

    def name(self, sample: int) -> str:
        """Path of the file, escaped where it would not print on one line."""
        path = self._source.file(sample)
        return path if path.isprintable() else repr(path)

    def sizes(self, samples: NDArray[np.int64]) -> NDArray[np.int32]:
        """Widths and heights of shape (N, 2); each header is read once.

        Raises:
            BadSampleError: a header cannot be read.
            StorageError: a file may not be read.
        """
        for sample in samples[self._sizes[samples, 0] == 0]:
            try:
                with open(self._source.file(int(sample)), "rb") as file:
                    self._sizes[sample] = image_size(file, apply_exif=True)
            except (DecodeError, OSError) as error:
                raise self._bad(int(sample), error) from None
        return self._sizes[samples]

    def read(self, sample: int) -> Encoded:
        """The bytes of the file; of CIFAR's binary version, pixels.

        Raises:
            BadSampleError: it cannot be read, or has no readable header.
            StorageError: it may not be read.
        """
        try:
            data = self._source.load(sample)
            if isinstance(data, np.ndarray):
                return Encoded(data.tobytes(), "raw", data.shape[1], data.shape[0])
            width, height, orientation = measure(data)
        except (DecodeError, OSError) as error:
            raise self._bad(sample, error) from None
        return Encoded(data, "file", width, height, orientation)

    def decode(self, sample: int) -> NDArray[np.uint8]:
        """Pixels of shape (H, W, 3), RGB, after EXIF orientation.

        Raises:
            BadSampleError: it cannot be read, or the decoder refuses it or warns about it.
            StorageError: it may not be read.
        """
        try:
            data = self._source.load(sample)
            return data if isinstance(data, np.ndarray) else decode_image(data, apply_exif=True)
        except (DecodeError, OSError) as error:
            raise self._bad(sample, error) from None

    def check_unchanged(self) -> None:
        """Do nothing: each read opens its file, so that none is kept that could be another."""

    def _bad(self, sample: int, error: DecodeError | OSError) -> BadSampleError | StorageError:
        if isinstance(error, PermissionError):  # not the image is bad
            return StorageError(f"{self.name(sample)}: may not be read; ask for the permission")
        reason = error.reason if isinstance(error, DecodeError) else error.strerror or str(error)
        return BadSampleError(sample, self.name(sample), reason)
