"""The ceiling: batches that already lie on the device, so that reading costs nothing."""

from __future__ import annotations

from collections.abc import Generator

import torch

from fastrot.data.loader import Batch, LoaderSpec
from fastrot.data.loaders.base import BaseLoader


class SyntheticLoader(BaseLoader):
    """The real ids, labels and flips of each batch, with the same random pixels in every one.

    Pixels are drawn once, from the seed, when the loader is built. All batches share them:
    who wants to change them in place must copy.

    Args:
        spec: everything a loader needs; images are never read, so none is ever bad.
    """

    def __init__(self, spec: LoaderSpec) -> None:
        super().__init__(spec)
        generator = torch.Generator().manual_seed(spec.seed)
        shape = (self.batch_size, spec.crop.size, spec.crop.size, 3)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self._images = pixels.to(spec.device)

    def _batches(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        for ids in self.spec.order.batches(epoch, start_step):
            yield self._batch(self._images[: len(ids)], ids, epoch)

    def _release(self) -> None:
        self._images = self._images[:0]
