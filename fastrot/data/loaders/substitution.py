"""What happens to a batch when one of its samples is bad. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastrot.data.dataset import BadSampleError, Dataset
from fastrot.data.sampling.crops import Boxes, Crop, replacement

_MAX_ATTEMPTS = 100


@dataclass(frozen=True)
class CropSource:
    """Where the pixels of a batch come from: samples, crops, and the rule for bad samples.

    Picklable, without the callbacks and devices of a ``LoaderSpec``: workers receive it.
    """

    samples: Dataset
    crop: Crop
    seed: int
    on_bad_sample: Literal["fail", "skip"]

    def boxes(self, epoch: int, ids: NDArray[np.int64]) -> Boxes:
        """Crop boxes of shape (N, 4), int32.

        Raises:
            BadSampleError: the header of an image cannot be read.
        """
        sizes = self.samples.sizes(ids)
        return self.crop.boxes(self.seed, epoch, ids, sizes[:, 0], sizes[:, 1])


class Substitution:
    """The ids of one batch, bad ones replaced one by one.

    The replacement of a sample is a pure function of (seed, sample, attempt), so that every
    loader, rank and epoch puts the same one in its place.

    Args:
        source: the data set and its rule for bad samples.
        ids: sample ids of shape (N,), as ordered.

    Attributes:
        ids: sample ids of shape (N,), as delivered.
        bad: why each replaced sample was bad, in the order of discovery.
    """

    def __init__(self, source: CropSource, ids: NDArray[np.int64]) -> None:
        self.ids = np.array(ids, dtype=np.int64)
        self.bad: list[BadSampleError] = []
        self._source = source
        self._ordered = ids
        self._attempts = np.zeros(len(ids), dtype=np.int64)

    def replace(self, row: int, error: BadSampleError) -> None:
        """Put the next replacement into a row.

        Raises:
            BadSampleError: ``error``, when bad samples are fatal or replacements run out.
        """
        attempt = int(self._attempts[row])
        if self._source.on_bad_sample == "fail" or attempt >= _MAX_ATTEMPTS:
            raise error
        self.bad.append(error)
        self._attempts[row] += 1
        sample = int(self._ordered[row])
        count = len(self._source.samples)
        self.ids[row] = replacement(self._source.seed, sample, attempt, count)

    def boxes(self, epoch: int) -> Boxes:
        """Crop boxes of shape (N, 4), int32, of the delivered ids; unreadable ones replaced."""
        while True:
            try:
                return self._source.boxes(epoch, self.ids)
            except BadSampleError as error:
                rows = np.flatnonzero(self.ids == error.sample)
                if not len(rows):
                    raise
                for row in rows:
                    self.replace(int(row), error)
