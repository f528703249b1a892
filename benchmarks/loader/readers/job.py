"""The job of all competitors of ``fastrot bench loader``: the same samples, boxes and order.

Shapes: N images per batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.beton.format import RAW
from fastrot.data.dataset import Dataset
from fastrot.data.open import open_dataset
from fastrot.data.sampling.crops import Boxes, Crop, CropKind
from fastrot.data.sampling.sampler import Sampler
from fastrot.errors import MismatchError

_SEED = 0


@dataclass(frozen=True)
class LoaderJob:
    """One job for all competitors."""

    data: str  # a .beton file or a folder
    loader: str = "native"  # for ``readers.own``: which of fastrot's loaders
    size: int = 224  # S, pixels
    batch: int = 128  # N
    workers: int = 1  # number of threads or processes
    crop: CropKind = "random_resized"  # how crops are drawn
    checksums: bool = True  # fastrot's loaders compare checksums while reading
    exact: bool = False  # the native loader and the decoder alone decode at full resolution
    device: str = "cpu"  # ``cpu`` or ``cuda``: where batches are delivered

    @property
    def seed(self) -> int:
        """Return the seed for the order and the crops."""
        return _SEED

    def crops(self) -> Crop:
        """Return the rule by which crops are drawn."""
        return Crop(self.crop, self.size)

    def order(self, num_samples: int) -> Sampler:
        """Return the sampler, which decides the samples of every batch."""
        return Sampler(num_samples, self.batch, seed=_SEED)

    def batches(self, samples: Dataset) -> Iterator[tuple[NDArray[np.int64], Boxes]]:
        """Yield ids (N,) and boxes (N, 4) of each batch, epoch after epoch, endlessly."""
        crops, order = self.crops(), self.order(len(samples))
        for epoch in itertools.count():
            for ids in order.batches(epoch):
                sizes = samples.sizes(ids)
                yield ids, crops.boxes(_SEED, epoch, ids, sizes[:, 0], sizes[:, 1])


class Stored:
    """The stored bytes of every image, unchecked, read as fast as possible.

    A .beton file is mapped, so its bytes are not copied. The files of a folder are read.

    Args:
        path: path of the data.

    Attributes:
        samples: the dataset.
        raw: whether the images are stored as pixels.

    Raises:
        MismatchError: a .beton file has both JPEGs and raw images, which no baseline can read.
    """

    def __init__(self, path: str | Path) -> None:
        self.samples = open_dataset(path, checksums=False)
        self.raw = False
        self._mapped: NDArray[np.uint8] | None = None
        if isinstance(self.samples, BetonDataset):
            file = self.samples.file
            raw = file.modes == RAW
            self.raw = bool(raw.any())
            if self.raw and not raw.all():
                raise MismatchError(f"{path}: JPEGs and raw images in one file; prepare it again")
            self._mapped = np.memmap(path, np.uint8, mode="c")  # torch requires writable memory
            self._starts = file.data_pointers.astype(np.int64)
            self._ends = self._starts + file.data_sizes.astype(np.int64)

    def __getitem__(self, sample: int) -> NDArray[np.uint8]:
        """Return the bytes of a file, of shape (n,), or, if ``raw``, pixels of shape (H, W, 3)."""
        if self._mapped is None:
            return np.fromfile(self.samples.name(sample), np.uint8)
        data = self._mapped[self._starts[sample] : self._ends[sample]]
        if not self.raw:
            return data
        width, height = self.samples.sizes(np.array([sample]))[0]
        return data.reshape(height, width, 3)
