"""Batches of whole images with their annotations: the sampler of pretraining, threads that load.

Images have sizes of their own, so a batch is a list of them. What is random about a sample is a
pure function of (seed, epoch, sample), drawn where it is loaded, so a batch does not depend on the
number of threads or ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.data.sampling.sampler import Sampler
from fastrot.system.in_flight import InFlight

Target = Any
"""Of detection: boxes, labels, masks by name; of segmentation: a map of classes."""

_Loaded = tuple[torch.Tensor, Target]


@dataclass(frozen=True)
class DenseBatch:
    """Images with their targets, on the device except ``index``.

    Attributes:
        images: N tensors of shape (3, H, W), uint8, RGB; H and W differ.
        targets: N targets.
        index: positions in the dataset, of shape (N,), int64, on the host.
        position: number of batches of this rank before it, since the first epoch.
    """

    images: list[torch.Tensor]
    targets: list[Target]
    index: torch.Tensor
    position: int


class DenseSource(Protocol):
    """Annotated images."""

    def __len__(self) -> int: ...

    def load(self, epoch: int, sample: int) -> tuple[torch.Tensor, Target]:
        """Return an image (3, H, W), uint8, and its target, as this epoch shows them.

        Called from several threads at once.

        Raises:
            FastrotError: the image or its annotation cannot be read.
        """
        ...


class DenseLoader:
    """The batches of this rank, loaded ahead by threads.

    Args:
        source: the annotated images.
        sampler: the ids of each batch.
        workers: number of threads, at least 1.
        device: where batches go.
    """

    def __init__(
        self, source: DenseSource, sampler: Sampler, *, workers: int, device: torch.device
    ) -> None:
        self._source, self._sampler, self._device = source, sampler, device
        self._threads = ThreadPoolExecutor(max(1, workers), "fastrot-dense")
        self._ahead = 1 + max(1, workers) // sampler.batch_size
        self._epoch = self._start_step = 0

    def __len__(self) -> int:
        """Return the number of batches per epoch, equal on all ranks."""
        return self._sampler.steps_per_epoch * self._sampler.accumulation

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Set the epoch, and the step within it, at which the next iteration starts."""
        self._epoch, self._start_step = epoch, start_step

    def __iter__(self) -> Iterator[DenseBatch]:
        """Yield the batches of the epoch in order.

        Raises:
            FastrotError: as ``DenseSource.load``, at the batch of that sample.
        """
        epoch, start = self._epoch, self._start_step
        self._start_step = 0
        first = epoch * len(self) + start * self._sampler.accumulation
        window: InFlight[NDArray[np.int64], _Pending, _Pending] = InFlight(
            lambda ids: self._submit(epoch, ids), _wait, ahead=self._ahead
        )
        try:
            batches = window.map(self._sampler.batches(epoch, start))
            for position, pending in enumerate(batches, first):
                yield self._batch(pending, position)
        finally:
            for pending in window.jobs:
                for job in pending.jobs:
                    job.cancel()

    def close(self) -> None:
        """Stop the threads; safe to call twice."""
        self._threads.shutdown(cancel_futures=True)

    def _submit(self, epoch: int, ids: NDArray[np.int64]) -> _Pending:
        load = self._source.load
        return _Pending(ids, [self._threads.submit(load, epoch, i) for i in ids.tolist()])

    def _batch(self, pending: _Pending, position: int) -> DenseBatch:
        loaded = [job.result() for job in pending.jobs]
        return DenseBatch(
            images=[image.to(self._device, non_blocking=True) for image, _ in loaded],
            targets=[to_device(target, self._device) for _, target in loaded],
            index=torch.from_numpy(pending.ids.copy()),
            position=position,
        )


@dataclass(frozen=True)
class _Pending:
    ids: NDArray[np.int64]
    jobs: list[Future[_Loaded]]


def _wait(pending: _Pending) -> _Pending:
    for job in pending.jobs:
        job.result()
    return pending


def to_device(target: Target, device: torch.device) -> Target:
    """Return a target, a tensor or a dictionary of tensors, on a device."""
    if isinstance(target, dict):
        return {name: value.to(device, non_blocking=True) for name, value in target.items()}
    return target.to(device, non_blocking=True)
