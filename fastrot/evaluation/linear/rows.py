"""Rows of cached features for a linear probe, from the cache to the device.

Shapes: n samples, K crops per sample (0: the test transform), D features, B samples per batch.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.data.sampling.sampler import Sampler
from fastrot.features.cache import FeatureCache
from fastrot.system.prefetch import Prefetcher

_READ_DEADLINE = 600.0
_AHEAD = 2
_BLOCK_BYTES = 2**20
_WINDOW = 4096  # blocks: an epoch of up to 4 GiB is shuffled as a whole
_RESIDENT_SHARE = 0.5


class FeatureBatch(NamedTuple):
    """A batch on the device.

    Attributes:
        features: of shape (B, D), float16, by layer.
        labels: of shape (B,), int64.
    """

    features: dict[str, torch.Tensor]
    labels: torch.Tensor


class RowReader:
    """Batches of cached features, read ahead by a thread, or kept on a GPU with enough memory.

    Args:
        cache: cache to read.
        layers: names of the layers to read.
        ids: samples to read, of shape (m,), int64.
        batch: samples per batch.
        seed: seed of the order.
        device: device of the batches.

    Raises:
        UsageError: a layer is unknown.
        BadDataError: its file is damaged.
    """

    def __init__(
        self,
        cache: FeatureCache,
        layers: Sequence[str],
        ids: NDArray[np.int64],
        *,
        batch: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._ids, self._device = ids, device
        self._crops = max(1, cache.crops)
        self._labels = np.asarray(cache.labels, dtype=np.int64)
        self._maps: Mapping[str, NDArray[np.float16]] = {
            layer: cache.features(layer).reshape(-1, cache.layers[layer].dim) for layer in layers
        }
        row = sum(array.shape[1] * array.itemsize for array in self._maps.values())
        self._batch = batch
        # Adjacent rows are read together, so that a cache larger than memory is read from disk
        # once per epoch. Up to one window is shuffled as a whole.
        self._order = Sampler(
            len(ids),
            batch,
            seed=seed,
            mode="block",
            drop_last=False,
            block=max(1, _BLOCK_BYTES // max(row, 1)),
            window=_WINDOW,
        )
        self._resident: dict[str, torch.Tensor] | None = None
        if device.type == "cuda":
            needed = sum(array.nbytes for array in self._maps.values())
            if needed < _RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
                self._resident = {
                    layer: torch.from_numpy(np.array(array)).to(device)
                    for layer, array in self._maps.items()
                }

    @property
    def steps(self) -> int:
        """Return the number of batches per epoch; the last may be short."""
        return self._order.steps_per_epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[FeatureBatch, None, None]:
        """Yield every sample once, in the order of this epoch: crop ``epoch`` modulo K of each.

        The first ``start_step`` batches are skipped.
        """
        yield from self._ahead(self._shuffled(epoch, start_step))

    def once(self, rank: int = 0, ranks: int = 1) -> Generator[FeatureBatch, None, None]:
        """Yield every sample once, in the order of the data: the first crop of each.

        Of several ranks each gets whole batches, the same that one rank has.
        """
        starts = range(rank * self._batch, len(self._ids), ranks * self._batch)
        yield from self._ahead((self._ids[at : at + self._batch], 0) for at in starts)

    def _shuffled(
        self, epoch: int, start_step: int
    ) -> Generator[tuple[NDArray[np.int64], int], None, None]:
        for chosen in self._order.batches(epoch, start_step):
            # The order within a batch does not matter; reading in file order is faster.
            yield np.sort(self._ids[chosen]), epoch % self._crops

    def _ahead(
        self, batches: Generator[tuple[NDArray[np.int64], int], None, None]
    ) -> Generator[FeatureBatch, None, None]:
        if self._resident is not None:
            yield from (self._pick(ids, crop) for ids, crop in batches)
            return
        rows = (self._read(ids, crop) for ids, crop in batches)
        with Prefetcher(rows, depth=_AHEAD, deadline=_READ_DEADLINE) as ahead:
            for features, labels in ahead:
                yield FeatureBatch(
                    {k: v.to(self._device, non_blocking=True) for k, v in features.items()},
                    labels.to(self._device, non_blocking=True),
                )

    def _pick(self, ids: NDArray[np.int64], crop: int) -> FeatureBatch:
        assert self._resident is not None
        rows = torch.from_numpy(ids * self._crops + crop).to(self._device)
        labels = torch.from_numpy(self._labels[ids]).to(self._device)
        return FeatureBatch({k: v.index_select(0, rows) for k, v in self._resident.items()}, labels)

    def _read(self, ids: NDArray[np.int64], crop: int) -> FeatureBatch:
        rows, pin = ids * self._crops + crop, self._device.type == "cuda"
        features = {k: torch.from_numpy(v.take(rows, axis=0)) for k, v in self._maps.items()}
        labels = torch.from_numpy(self._labels[ids])
        if pin:
            features = {k: v.pin_memory() for k, v in features.items()}
        return FeatureBatch(features, labels)
