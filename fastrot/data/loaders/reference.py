"""The reference loader, which the others are tested against: strict decoding, torchvision's resize.

Each of the ``data.workers`` processes draws, decodes, crops, resizes and stacks whole batches; with
0 workers, the calling process does. Shapes: a batch has N source images; a crop has side S.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.data.dataset import BadSampleError, decode_sample
from fastrot.data.loader import READ_DEADLINE_SECONDS, Batch, LoaderSpec
from fastrot.data.loaders.base import BaseLoader
from fastrot.data.sampling.draw import BatchDraw, BatchDrawer
from fastrot.kernels.decode.crop_reference import crop_and_resize
from fastrot.system.prefetch import Prefetcher
from fastrot.system.worker_pool import Bulk, WorkerPool

_Request = tuple[int, NDArray[np.int64]]


class Decoded(NamedTuple):
    """One batch on the host: the draw, and images of shape (N, S, S, 3), uint8."""

    drawn: BatchDraw
    images: torch.Tensor


def decode_batch(drawer: BatchDrawer, epoch: int, ids: NDArray[np.int64]) -> Decoded:
    """Draw, decode, crop and resize a batch.

    Raises:
        BadSampleError: a sample is bad and bad samples are fatal.
    """
    size = drawer.crop.size
    drawn = drawer.draw(epoch, ids)
    images = torch.empty((len(ids), size, size, 3), dtype=torch.uint8)
    rows = images.numpy()
    for row in range(len(ids)):
        rows[row] = decode_row(drawer, drawn, row)
    return Decoded(drawn, images)


def decode_row(drawer: BatchDrawer, drawn: BatchDraw, row: int) -> NDArray[np.uint8]:
    """Decode, crop and resize a row of a batch, replacing its sample until one is good.

    Other loaders call this for samples that their decoder refused.

    Args:
        drawer: the drawer of the batch.
        drawn: the batch; a bad sample of this row is replaced in it.
        row: row of the batch.

    Returns:
        The crop of shape (S, S, 3), uint8.

    Raises:
        BadSampleError: the sample is bad and bad samples are fatal.
    """
    while True:
        try:
            pixels = decode_sample(drawer.dataset, int(drawn.ids[row]))
            return crop_and_resize(pixels, drawn.boxes[row], drawer.crop.size)
        except BadSampleError as error:
            drawer.replace(drawn, row, error)


class _Decode:
    """Decodes a batch in a worker; a request is an epoch and the sample ids."""

    def __init__(self, drawer: BatchDrawer) -> None:
        self._drawer = drawer

    def __call__(self, request: _Request) -> Bulk:
        drawn, images = decode_batch(self._drawer, *request)
        return Bulk(drawn, images.numpy())


def _start_worker() -> None:
    # One thread per worker. A fork also lacks the threads that torch may have started in the
    # parent, and a multi-threaded operation would wait for them.
    torch.set_num_threads(1)


class ReferenceLoader(BaseLoader):
    """Loads batches with the strict decoder and torchvision; see the ``Loader`` contract.

    Args:
        spec: everything that a loader needs; ``workers`` is the number of processes; 0: the calling
            process. They start here, before any threads, which a fork would not copy properly.
    """

    def __init__(self, spec: LoaderSpec) -> None:
        super().__init__(spec)
        self._pool = WorkerPool(
            _Decode(self._drawer), workers=spec.workers, setting="data.workers", start=_start_worker
        )

    def close(self) -> None:
        """Stop workers and free buffers; safe to call twice."""
        self._pool.kill()  # first, because the reading thread may be waiting for a worker
        super().close()

    def _batches(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        requests = ((epoch, ids) for ids in self.spec.sampler.batches(epoch, start_step))
        decoded = self._decoded(self._pool.map(requests, batch=1))
        if not self.spec.workers:
            yield from self._delivered(decoded)
            return
        # A pipe holds only a small part of a batch: if nothing read from it while the run computes,
        # each worker would be stuck with its finished batch.
        ahead = Prefetcher(decoded, depth=self.spec.workers, deadline=READ_DEADLINE_SECONDS)
        try:
            yield from self._delivered(ahead)
        finally:
            self._pool.discard()
            ahead.close()

    def _decoded(self, results: Iterator[Bulk]) -> Generator[Decoded, None, None]:
        for drawn, array in results:
            images = torch.from_numpy(array)
            if self.spec.device.type == "cuda":
                images = images.pin_memory()
            yield Decoded(drawn, images)

    def _delivered(self, decoded: Iterable[Decoded]) -> Iterator[Batch]:
        for drawn, images in decoded:
            yield self._batch(images, drawn)

    def _release(self) -> None:
        self._pool.close()
