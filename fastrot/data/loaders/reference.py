"""The reference loader: Pillow decodes, torchvision resizes. The others are tested against it.

``data.workers`` processes each decode, crop, resize and stack whole batches; with 0 workers
the calling process does. Shapes: N source images in a batch, S side of a crop.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.data.dataset import BadSampleError
from fastrot.data.loader import READ_DEADLINE_SECONDS, Batch, LoaderSpec
from fastrot.data.loaders.base import BaseLoader
from fastrot.data.loaders.substitution import CropSource, Substitution
from fastrot.data.sampling.crops import Boxes
from fastrot.kernels.decode.crop_reference import crop_and_resize
from fastrot.system.prefetch import Prefetcher
from fastrot.system.worker_pool import Bulk, WorkerPool

_Request = tuple[int, NDArray[np.int64]]


class Decoded(NamedTuple):
    """One batch on the host: images (N, S, S, 3) uint8, ids (N,) int64, samples replaced."""

    images: torch.Tensor
    ids: NDArray[np.int64]
    bad: tuple[BadSampleError, ...]


def decode_batch(source: CropSource, epoch: int, ids: NDArray[np.int64]) -> Decoded:
    """Decode, crop and resize a batch.

    Raises:
        BadSampleError: a sample is bad and bad samples are fatal.
    """
    size = source.crop.size
    batch = Substitution(source, ids)
    boxes = batch.boxes(epoch)
    images = torch.empty((len(ids), size, size, 3), dtype=torch.uint8)
    rows = images.numpy()
    for row in range(len(ids)):
        rows[row], boxes = decode_row(source, batch, row, epoch, boxes)
    return Decoded(images, batch.ids, tuple(batch.bad))


def decode_row(
    source: CropSource, batch: Substitution, row: int, epoch: int, boxes: Boxes
) -> tuple[NDArray[np.uint8], Boxes]:
    """Decode, crop and resize a row of a batch, replacing its sample until one is good.

    Other loaders ask here about what their decoder refused: right pixels or a named error.

    Args:
        source: where from.
        batch: the ids of the batch, and what was replaced so far.
        row: which one.
        epoch: number of the epoch.
        boxes: ``batch.boxes(epoch)``.

    Returns:
        The crop of shape (S, S, 3), uint8, and the boxes as they are now.

    Raises:
        BadSampleError: the sample is bad and bad samples are fatal.
    """
    while True:
        try:
            pixels = source.samples.decode(int(batch.ids[row]))
            return crop_and_resize(pixels, boxes[row], source.crop.size), boxes
        except BadSampleError as error:
            batch.replace(row, error)
            boxes = batch.boxes(epoch)


class _Decode:
    """What a worker does with a request: an epoch and the sample ids of a batch."""

    def __init__(self, source: CropSource) -> None:
        self._source = source

    def __call__(self, request: _Request) -> Bulk:
        images, ids, bad = decode_batch(self._source, *request)
        return Bulk((ids, bad), images.numpy())


def _start_worker() -> None:
    # One thread a worker; and the threads that the parent's torch may have started are not in
    # a fork, where an operation on several would wait for them.
    torch.set_num_threads(1)


class ReferenceLoader(BaseLoader):
    """Batches by Pillow and torchvision; see the ``Loader`` contract.

    Args:
        spec: everything a loader needs; ``workers`` are processes, 0: the calling process.
            They start here, before threads that a fork would copy half of.
    """

    def __init__(self, spec: LoaderSpec) -> None:
        super().__init__(spec)
        source = CropSource(spec.samples, spec.crop, spec.seed, spec.on_bad_sample)
        self._pool = WorkerPool(
            _Decode(source), workers=spec.workers, setting="data.workers", start=_start_worker
        )

    def close(self) -> None:
        """Stop workers and free buffers; safe to call twice."""
        self._pool.kill()  # first: the thread that reads from them may wait for one
        super().close()

    def _batches(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        requests = ((epoch, ids) for ids in self.spec.order.batches(epoch, start_step))
        decoded = self._decoded(self._pool.map(requests, batch=1))
        if not self.spec.workers:
            yield from self._delivered(decoded, epoch)
            return
        # A pipe holds a small part of a batch: were nobody reading while the run computes, each
        # worker would wait with the batch that it has finished.
        ahead = Prefetcher(decoded, depth=self.spec.workers, deadline=READ_DEADLINE_SECONDS)
        try:
            yield from self._delivered(ahead, epoch)
        finally:
            self._pool.discard()
            ahead.close()

    def _decoded(self, results: Iterator[Bulk]) -> Generator[Decoded, None, None]:
        for (ids, bad), array in results:
            images = torch.from_numpy(array)
            if self.spec.device.type == "cuda":
                images = images.pin_memory()
            yield Decoded(images, ids, bad)

    def _delivered(self, decoded: Iterable[Decoded], epoch: int) -> Iterator[Batch]:
        for images, ids, bad in decoded:
            self._report(bad)
            yield self._batch(images, ids, epoch)

    def _release(self) -> None:
        self._pool.close()
