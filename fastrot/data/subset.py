"""A view of some samples of a dataset, for example the training images of a quick kNN."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastrot.data.dataset import BadSampleError, Dataset, Encoded
from fastrot.data.labels import Labels


@dataclass
class DatasetSubset:
    """Some samples of a dataset, renumbered from 0, as are the errors about them.

    Args:
        dataset: the whole dataset.
        ids: ids of the samples in it, of shape (M,), int64.
    """

    dataset: Dataset
    ids: NDArray[np.int64]
    labels: Labels = field(init=False)

    def __post_init__(self) -> None:
        self.path = self.dataset.path
        self.labels = self.dataset.labels[self.ids]
        self.class_names = self.dataset.class_names
        self.unlabelled = self.dataset.unlabelled
        self.fields = self.dataset.fields
        self.left_out = self.dataset.left_out
        self.digest, self.origin = self.dataset.digest, self.dataset.origin
        self.byte_sizes = self.dataset.byte_sizes[self.ids]
        self.stored_bytes = self.dataset.stored_bytes * len(self.ids) // max(len(self.dataset), 1)
        self.applies_exif = self.dataset.applies_exif

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, sample: int) -> str:
        """Return the location of a sample's bytes, for messages."""
        return self.dataset.name(int(self.ids[sample]))

    def sizes(self, samples: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return widths and heights, of shape (N, 2).

        Raises:
            BadSampleError: a header cannot be read.
        """
        ids = self.ids[samples]
        try:
            return self.dataset.sizes(ids)
        except BadSampleError as error:
            bad = samples[np.flatnonzero(ids == error.sample)[0]]
            raise _renumbered(error, int(bad)) from None

    def read(self, sample: int) -> Encoded:
        """Return the encoded bytes of a sample.

        Raises:
            BadSampleError: they are missing, changed, or without a readable header.
        """
        try:
            return self.dataset.read(int(self.ids[sample]))
        except BadSampleError as error:
            raise _renumbered(error, sample) from None

    def decode(self, sample: int) -> NDArray[np.uint8]:
        """Return the pixels of a sample, of shape (H, W, 3), RGB.

        Raises:
            BadSampleError: as for ``read``, or the decoder refuses the bytes or warns about them.
        """
        try:
            return self.dataset.decode(int(self.ids[sample]))
        except BadSampleError as error:
            raise _renumbered(error, sample) from None

    def check_unchanged(self) -> None:
        """Check that the whole dataset is still the one that was opened.

        Raises:
            BadDataError: a file was replaced, removed, truncated or modified.
        """
        self.dataset.check_unchanged()


def _renumbered(error: BadSampleError, sample: int) -> BadSampleError:
    """Return the error with the index of the sample in the subset."""
    return BadSampleError(sample, error.name, error.reason)


def spread(dataset: Dataset, most: int) -> DatasetSubset:
    """Return at most ``most`` samples, evenly spaced over the dataset."""
    count = min(most, len(dataset))
    return DatasetSubset(dataset, np.linspace(0, len(dataset) - 1, count).astype(np.int64))
