"""The base of datasets whose samples are image files: folders and tar shards. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from fastrot.data.dataset import BadSampleError, Encoded
from fastrot.data.images.decode import DecodeError, decode_image, measure
from fastrot.errors import StorageError


class ImageFiles(ABC):
    """Image files that are read and decoded on demand, with EXIF orientation applied.

    Args:
        sizes: widths and heights that are known without reading, of shape (n, 2); 0: unknown.
    """

    applies_exif = True

    def __init__(self, sizes: NDArray[np.int32]) -> None:
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def sizes(self, samples: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return widths and heights, of shape (N, 2); each header is read once.

        Raises:
            BadSampleError: a header cannot be read.
            BadDataError: a shard changed while in use.
            StorageError: the system cannot read it, or permission to read it is denied.
        """
        for sample in samples[self._sizes[samples, 0] == 0].tolist():
            try:
                self._sizes[sample] = self._measure(sample)
            except (DecodeError, OSError) as error:
                raise self._bad(sample, error) from None
        return self._sizes[samples]

    def read(self, sample: int) -> Encoded:
        """Return the bytes of the file, or pixels where they are stored as such.

        Raises:
            BadSampleError: the file or its header cannot be read.
            BadDataError: the shard changed while in use.
            StorageError: the system cannot read it, or permission to read it is denied.
        """
        try:
            data = self._load(sample)
            if isinstance(data, np.ndarray):
                return Encoded(data.tobytes(), "raw", data.shape[1], data.shape[0])
            width, height, orientation = measure(data)
        except (DecodeError, OSError) as error:
            raise self._bad(sample, error) from None
        return Encoded(data, "file", width, height, orientation)

    def decode(self, sample: int) -> NDArray[np.uint8]:
        """Decode to RGB pixels of shape (H, W, 3), uint8, after EXIF orientation.

        Raises:
            BadSampleError: as for ``read``, or the decoder refuses the bytes or warns about them.
            BadDataError: the shard changed while in use.
            StorageError: the system cannot read it, or permission to read it is denied.
        """
        try:
            data = self._load(sample)
            return data if isinstance(data, np.ndarray) else decode_image(data, apply_exif=True)
        except (DecodeError, OSError) as error:
            raise self._bad(sample, error) from None

    @abstractmethod
    def name(self, sample: int) -> str:
        """Return the location of a sample's bytes, for messages."""

    @abstractmethod
    def _load(self, sample: int) -> bytes | NDArray[np.uint8]: ...

    @abstractmethod
    def _measure(self, sample: int) -> tuple[int, int]: ...

    def _bad(self, sample: int, error: DecodeError | OSError) -> BadSampleError | StorageError:
        if isinstance(error, PermissionError):  # the image itself may be fine
            return StorageError(f"{self.name(sample)}: may not be read; ask for permission")
        reason = error.reason if isinstance(error, DecodeError) else error.strerror or str(error)
        return BadSampleError(sample, self.name(sample), reason)
