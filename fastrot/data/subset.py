"""A view of a data set that holds some of its samples: the bank of a quick kNN, for example."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastrot.data.samples import Encoded, Samples


@dataclass
class SubsetSamples:
    """Some samples of a data set, renumbered from 0.

    Args:
        samples: the whole data set.
        ids: which of its samples, of shape (M,), int64.
    """

    samples: Samples
    ids: NDArray[np.int64]
    labels: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.path = self.samples.path
        self.labels = self.samples.labels[self.ids]
        self.class_names = self.samples.class_names
        self.digest = self.samples.digest
        self.applies_exif = self.samples.applies_exif

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, sample: int) -> str:
        """Where the bytes of a sample are, for messages."""
        return self.samples.name(int(self.ids[sample]))

    def sizes(self, samples: NDArray[np.int64]) -> NDArray[np.int32]:
        """Widths and heights of shape (N, 2)."""
        return self.samples.sizes(self.ids[samples])

    def read(self, sample: int) -> Encoded:
        """The encoded bytes of a sample."""
        return self.samples.read(int(self.ids[sample]))

    def decode(self, sample: int) -> NDArray[np.uint8]:
        """Pixels of shape (H, W, 3), RGB, of a sample."""
        return self.samples.decode(int(self.ids[sample]))


def spread(samples: Samples, most: int) -> SubsetSamples:
    """At most ``most`` samples, evenly spaced over the data set."""
    count = min(most, len(samples))
    return SubsetSamples(samples, np.linspace(0, len(samples) - 1, count).astype(np.int64))
