"""A folder of images as a data set: files are read and decoded as they are asked for.

Importing this module imports no torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrot.data.images import DecodeError, decode_image, image_size, measure
from fastrot.data.samples import BadSampleError, Encoded
from fastrot.data.sources import list_source


class FolderSamples:
    """The images of a folder; see the ``Samples`` contract. EXIF orientation is applied.

    The digest covers names, sizes in bytes, labels and class names, so that opening a million
    files reads none of them. An image exchanged for another one of exactly the same size goes
    unseen when a run is resumed; times of modification would show it, but also change when a
    data set is copied to another machine. A ``.beton`` file has checksums and no such gap.

    Args:
        path: class folders, or images without labels.

    Raises:
        UsageError: no such folder, or it has several splits.
        BadDataError: no images in it.
    """

    applies_exif = True

    def __init__(self, path: str | Path) -> None:
        source = list_source(path, kind="folder")
        self.path = Path(path)
        self.labels = source.labels
        self.class_names = source.class_names
        self.digest = source.digest
        self.stored_bytes = int(source.sizes.sum())
        self._root = source.root
        self._names = source.paths
        self._sizes = np.zeros((len(source), 2), dtype=np.int32)  # 0: header not read yet

    def __len__(self) -> int:
        return len(self._names)

    def name(self, sample: int) -> str:
        """Path of the file, escaped where it would not print on one line."""
        path = str(self._root / self._names[sample])
        return path if path.isprintable() else repr(path)

    def sizes(self, samples: NDArray[np.int64]) -> NDArray[np.int32]:
        """Widths and heights of shape (N, 2); each header is read once.

        Raises:
            BadSampleError: a header cannot be read.
        """
        for sample in samples[self._sizes[samples, 0] == 0]:
            try:
                with open(self._root / self._names[sample], "rb") as file:
                    self._sizes[sample] = image_size(file, apply_exif=True)
            except (DecodeError, OSError) as error:
                raise self._bad(int(sample), error) from None
        return self._sizes[samples]

    def read(self, sample: int) -> Encoded:
        """The bytes of the file.

        Raises:
            BadSampleError: it cannot be read, or has no readable header.
        """
        try:
            data = (self._root / self._names[sample]).read_bytes()
            width, height, orientation = measure(data)
        except (DecodeError, OSError) as error:
            raise self._bad(sample, error) from None
        return Encoded(data, "file", width, height, orientation)

    def decode(self, sample: int) -> NDArray[np.uint8]:
        """Pixels of shape (H, W, 3), RGB, after EXIF orientation.

        Raises:
            BadSampleError: it cannot be read, or the decoder refuses it or warns about it.
        """
        try:
            return decode_image((self._root / self._names[sample]).read_bytes(), apply_exif=True)
        except (DecodeError, OSError) as error:
            raise self._bad(sample, error) from None

    def _bad(self, sample: int, error: DecodeError | OSError) -> BadSampleError:
        reason = error.reason if isinstance(error, DecodeError) else error.strerror or str(error)
        return BadSampleError(sample, self.name(sample), reason)
