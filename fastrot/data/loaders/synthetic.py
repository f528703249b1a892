"""The upper limit of throughput: batches that are already on the device."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np
import torch

from fastrot.data.loader import Batch, LoaderSpec
from fastrot.data.loaders.base import BaseLoader


class SyntheticLoader(BaseLoader):
    """Batches with their real ids, labels, flips and turns, but the same random pixels.

    The pixels are drawn once, from the seed, when the loader is built. All batches share them, so
    copy them before changing them in place.

    Args:
        spec: everything that a loader needs; images are never read, so none is ever bad.
    """

    def __init__(self, spec: LoaderSpec) -> None:
        super().__init__(spec)
        generator = torch.Generator().manual_seed(spec.seed)
        shape = (self.batch_size, spec.crop.size, spec.crop.size, 3)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self._images = pixels.to(spec.device)
        # No headers are read, because the boxes are not used.
        self._drawer = replace(self._drawer, crop=replace(spec.crop, kind="whole"))
        self._sizes = np.full((self.batch_size, 2), spec.crop.size, np.int32)

    def _batches(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        for ids in self.spec.sampler.batches(epoch, start_step):
            drawn = self._drawer.draw(epoch, ids, sizes=self._sizes[: len(ids)])
            yield self._batch(self._images[: len(ids)], drawn)

    def _release(self) -> None:
        self._images = self._images[:0]
