"""A folder of images as a data set: files are read and decoded on demand.

It may have any layout that ``list_source`` supports, so no conversion is needed. Importing this
module does not import torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrot.data.dataset import BadSampleError, Encoded
from fastrot.data.images.decode import DecodeError, decode_image, measure
from fastrot.data.sources.cifar import SIDE as CIFAR_SIDE
from fastrot.data.sources.find import SourceKind, list_source
from fastrot.errors import StorageError


class FolderDataset:
    """The images of a folder; see the ``Dataset`` contract. EXIF orientation is applied.

    The digest covers names, sizes in bytes, labels and class names, so opening a million files
    reads none of them. If an image is replaced by another of exactly the same size, a resumed run
    does not notice; modification times would show it, but they also change when a data set is
    copied to another machine. A ``.beton`` file has checksums and therefore no such gap.

    Args:
        path: the folder of the data set.
        kind: its layout, as in ``list_source``; ``folder``: class folders or unlabelled images.
        split: which part to read, if the data set has parts.
        follow_symlinks: also follow links that lead out of the folder.

    Raises:
        UsageError: the folder or split does not exist, the layout differs, or a split is needed.
        BadDataError: the folder has no images, or its lists are damaged.
        StorageError: the folder cannot be read.
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
        """Return the path of the file, escaped if it would not print on one line."""
        path = self._source.file(sample)
        return path if path.isprintable() else repr(path)

    def sizes(self, samples: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return widths and heights, shape (N, 2); each header is read once.

        Raises:
            BadSampleError: a header cannot be read.
            StorageError: permission to read a file is denied.
        """
        for sample in samples[self._sizes[samples, 0] == 0]:
            try:
                with open(self._source.file(int(sample)), "rb") as file:
                    self._sizes[sample] = measure(file)[:2]
            except (DecodeError, OSError) as error:
                raise self._bad(int(sample), error) from None
        return self._sizes[samples]

    def read(self, sample: int) -> Encoded:
        """Read the bytes of the file, or the pixels of a record in CIFAR's binary version.

        Raises:
            BadSampleError: the file or its header cannot be read.
            StorageError: permission to read it is denied.
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
        """Decode to RGB pixels of shape (H, W, 3), uint8, after EXIF orientation.

        Raises:
            BadSampleError: it cannot be read, or the decoder refuses it or warns about it.
            StorageError: permission to read it is denied.
        """
        try:
            data = self._source.load(sample)
            return data if isinstance(data, np.ndarray) else decode_image(data, apply_exif=True)
        except (DecodeError, OSError) as error:
            raise self._bad(sample, error) from None

    def check_unchanged(self) -> None:
        """Do nothing: every read opens its file again."""

    def _bad(self, sample: int, error: DecodeError | OSError) -> BadSampleError | StorageError:
        if isinstance(error, PermissionError):  # the image itself may be fine
            return StorageError(f"{self.name(sample)}: may not be read; ask for permission")
        reason = error.reason if isinstance(error, DecodeError) else error.strerror or str(error)
        return BadSampleError(sample, self.name(sample), reason)
