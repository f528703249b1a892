"""The reference loader: Pillow decodes, torchvision resizes. The others are tested against it.

``data.workers`` processes each decode, crop, resize and stack whole batches; with 0 workers
the calling process does. Shapes: N source images in a batch, S side of a crop.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import InterpolationMode, resize

from fastrot.data.epochs import EpochLoader
from fastrot.data.loader import READ_DEADLINE_SECONDS, Batch, LoaderSpec
from fastrot.data.order import SampleOrder
from fastrot.data.replace import CropSource, Substitution
from fastrot.data.samples import BadSampleError
from fastrot.errors import FastrotError, MismatchError, OutOfMemoryError, StorageError

_SHARED_MEMORY = "/dev/shm"
_BATCHES_AHEAD = 2  # a worker

_Request = tuple[int, NDArray[np.int64]]


class Decoded(NamedTuple):
    """One batch on the host: images (N, S, S, 3) uint8, ids (N,) int64, samples replaced."""

    images: torch.Tensor
    ids: NDArray[np.int64]
    bad: tuple[BadSampleError, ...]


def cut(pixels: NDArray[np.uint8], box: NDArray[np.int32]) -> NDArray[np.uint8]:
    """The part of an image (H, W, 3) inside a box; zeros where the box leaves the image."""
    left, top, width, height = (int(value) for value in box)
    image_h, image_w = pixels.shape[:2]
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, image_w), min(top + height, image_h)
    inside = pixels[y0:y1, x0:x1]
    if inside.shape[:2] == (height, width):
        return inside
    padded = np.zeros((height, width, 3), dtype=np.uint8)
    padded[y0 - top : y1 - top, x0 - left : x1 - left] = inside
    return padded


def crop_and_resize(
    pixels: NDArray[np.uint8], box: NDArray[np.int32], size: int
) -> NDArray[np.uint8]:
    """One crop of shape (S, S, 3), uint8: torchvision's antialiased bilinear resize of a box."""
    part = cut(pixels, box)
    if part.shape[:2] == (size, size):
        return part
    chw = torch.from_numpy(np.array(part)).permute(2, 0, 1)
    resized = resize(chw, [size, size], InterpolationMode.BILINEAR, antialias=True)
    hwc: NDArray[np.uint8] = resized.permute(1, 2, 0).numpy()
    return hwc


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
        while True:
            try:
                pixels = source.samples.decode(int(batch.ids[row]))
                break
            except BadSampleError as error:
                batch.replace(row, error)
                boxes = batch.boxes(epoch)
        rows[row] = crop_and_resize(pixels, boxes[row], size)
    return Decoded(images, batch.ids, tuple(batch.bad))


class _Requests:
    """The (epoch, ids) of each batch of the iteration at hand; DataLoader calls it a sampler."""

    def __init__(self, order: SampleOrder) -> None:
        self.order = order
        self.epoch = 0
        self.start_step = 0

    def __iter__(self) -> Iterator[_Request]:
        for ids in self.order.batches(self.epoch, self.start_step):
            yield self.epoch, ids


class _Decoding(Dataset[Any]):
    """Answers a request with a batch, or with the error that it met.

    An exception that crosses process borders as a value keeps its type and its one line.
    """

    def __init__(self, source: CropSource) -> None:
        self.source = source

    def __getitem__(self, request: _Request) -> Decoded | FastrotError:
        try:
            return decode_batch(self.source, *request)
        except FastrotError as error:
            return error


def _as_it_is(result: Any) -> Any:
    return result


def _start_worker(worker: int) -> None:
    # Ctrl-C, Slurm and timeout(1) signal the whole process group: the main process decides what
    # a signal means, and a worker ends when it is told to, or when its parent is gone.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


class ReferenceLoader(EpochLoader):
    """Batches by Pillow and torchvision; see the ``Loader`` contract.

    Args:
        spec: everything a loader needs; ``workers`` are processes, 0: the calling process.
    """

    def __init__(self, spec: LoaderSpec) -> None:
        super().__init__(spec)
        source = CropSource(spec.samples, spec.crop, spec.seed, spec.on_bad_sample)
        self._requests = _Requests(spec.order)
        workers: dict[str, Any] = {}
        if spec.workers:
            _check_shared_memory(spec)
            workers = {
                "num_workers": spec.workers,
                "persistent_workers": True,
                "prefetch_factor": _BATCHES_AHEAD,
                "timeout": READ_DEADLINE_SECONDS,
                "worker_init_fn": _start_worker,
                # Forked workers start at once and share the data set's tables.
                "multiprocessing_context": "fork" if sys.platform == "linux" else None,
            }
        self._loader: DataLoader[Any] | None = DataLoader(
            _Decoding(source),
            batch_size=None,
            sampler=self._requests,
            collate_fn=_as_it_is,
            pin_memory=spec.device.type == "cuda",
            **workers,
        )

    def _batches(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        assert self._loader is not None
        self._requests.epoch, self._requests.start_step = epoch, start_step
        results = iter(self._loader)
        try:
            while True:
                try:
                    result = next(results, None)
                except RuntimeError as error:
                    raise _worker_failure(error) from None
                if result is None:
                    return
                if isinstance(result, FastrotError):
                    raise result
                images, ids, bad = result
                self._report(bad)
                yield self._batch(images, ids, epoch)
        finally:
            del results  # a traceback that keeps this frame must not keep the workers

    def _release(self) -> None:
        # DataLoader has no public way to stop persistent workers: they end with its iterator.
        self._loader = None


def _check_shared_memory(spec: LoaderSpec) -> None:
    """Batches come from the workers through /dev/shm, which containers make small.

    Raises:
        MismatchError: it has too little room for the batches on their way.
    """
    if not os.path.isdir(_SHARED_MEMORY):
        return
    status = os.statvfs(_SHARED_MEMORY)
    free = status.f_bavail * status.f_frsize
    on_their_way = _BATCHES_AHEAD * spec.workers + 1
    need = on_their_way * spec.order.batch_size * spec.crop.size**2 * 3
    if need > free:
        raise MismatchError(
            f"{_SHARED_MEMORY} has {free >> 20} MiB left, {spec.workers} data workers need "
            f"{(need >> 20) + 1} MiB; start the container with a larger --shm-size, or set "
            "data.workers to 0 or data.loader to dali"
        )


def _worker_failure(error: RuntimeError) -> Exception:
    """What torch says of a worker that died or fell silent, as one of our errors."""
    text = " ".join(str(error).split())
    if "killed by signal: Killed" in text or "exited unexpectedly" in text:
        return OutOfMemoryError(
            "a data worker was killed, most likely for lack of memory; lower data.workers"
        )
    if "killed by signal: Bus error" in text:
        return OutOfMemoryError(
            "a data worker found no shared memory (/dev/shm is full); set data.workers=0, or "
            "give the container more with --shm-size"
        )
    if "timed out" in text:
        return StorageError(
            f"no batch for {READ_DEADLINE_SECONDS:.0f} s: the storage of the data set stalls"
        )
    return error
