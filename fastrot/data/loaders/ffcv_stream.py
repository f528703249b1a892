"""FFCV's Loader as a stream of decoded rows that can fail, stop and start again.

FFCV provides the reader, the page lookup, the compiled pipeline, the JPEG decoder and the resize.
The ids, the boxes and the thread's main loop are implemented here, because in FFCV's own loop an
exception ends the thread silently, and the consumer then waits forever.

Importing this module imports FFCV, which sets the thread counts of torch and numba: import it
within ``thread_counts_kept``.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from ffcv.loader import Loader as FfcvsOwnLoader
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline import PipelineSpec
from ffcv.traversal_order.base import TraversalOrder
from numpy.typing import NDArray

from fastrot.data.loader import READ_DEADLINE_SECONDS
from fastrot.data.loaders.ffcv_decoder import DECODED, BoxDecoder
from fastrot.data.loaders.thread_counts import thread_counts_kept
from fastrot.errors import FastrotError, StorageError

_POLL_SECONDS = 0.5
_STOP_SECONDS = 60.0

# numba's simplest threading layer aborts the process if two threads run parallel code at the same
# time, as the training and validation loaders would. They compete for the same cores anyway, so
# running one at a time costs nothing.
_ONE_AT_A_TIME = threading.Lock()


class _GivenOrder(TraversalOrder):  # type: ignore[misc]
    """A given order of ids; FFCV takes an order only as a class or a callable instance."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        self.ids = ids

    def __call__(self, _loader: FfcvsOwnLoader) -> _GivenOrder:
        return self

    def sample_order(self, _epoch: int) -> NDArray[np.int64]:
        return self.ids


class _Epoch(EpochIterator):  # type: ignore[misc]
    """FFCV's producer thread; its results and exceptions all go through the queue."""

    def run(self) -> None:
        """Decode batch after batch until the order ends or ``stop`` is called."""
        try:
            numba.set_num_threads(self.loader.num_workers)  # applies to this thread only
            slots = self.loader.batches_ahead + 2
            for number, ids in enumerate(self.iter_ixes):
                with _ONE_AT_A_TIME:
                    (rows,) = self.run_pipeline(number, ids, number % slots, None)
                if not self._put((ids, rows)):
                    return
            self._put(None)
        except BaseException as error:  # the consumer raises it, so that none is lost
            self._put(error)

    def _put(self, item: object) -> bool:
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def take(self) -> Any:
        """Return the next item.

        Raises:
            StorageError: none came within the deadline.
        """
        end = time.monotonic() + READ_DEADLINE_SECONDS
        while time.monotonic() < end and (self.is_alive() or not self.output_queue.empty()):
            try:
                return self.output_queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
        raise StorageError(
            f"FFCV gave no batch for {READ_DEADLINE_SECONDS:.0f} s: the storage of the data set "
            "stalls; or try --loader reference"
        )

    def stop(self) -> None:
        """Stop the thread, whether or not its batches were taken."""
        self.terminate_event.set()
        end = time.monotonic() + _STOP_SECONDS
        while self.is_alive() and time.monotonic() < end:
            try:
                self.output_queue.get_nowait()
            except queue.Empty:
                self.join(timeout=_POLL_SECONDS / 5)


class FfcvStream:
    """Decodes the image field of a ``.beton`` file in any order.

    Args:
        path: the file, already validated: FFCV reads out of bounds in a damaged one.
        fields: names of all fields.
        image: name of the image field; no other is read.
        num_samples: n.
        size: S, side of a crop.
        chunk: number of images decoded at a time.
        workers: number of decoding threads.
    """

    def __init__(
        self,
        path: Path,
        fields: Iterable[str],
        image: str,
        num_samples: int,
        *,
        size: int,
        chunk: int,
        workers: int,
    ) -> None:
        self._decoder = BoxDecoder(size, num_samples)
        self._order = _GivenOrder(np.arange(num_samples, dtype=np.int64))
        workers = min(max(workers, 1), numba.config.NUMBA_NUM_THREADS)
        pipelines: dict[str, PipelineSpec | None] = dict.fromkeys(fields)  # None: not read
        pipelines[image] = PipelineSpec(image, decoder=self._decoder)
        with thread_counts_kept():
            self._loader: FfcvsOwnLoader | None = FfcvsOwnLoader(
                str(path),
                batch_size=chunk,
                num_workers=workers,
                os_cache=True,
                order=self._order,
                drop_last=False,
                pipelines=pipelines,
            )

    def rows(
        self, ids: NDArray[np.int64], boxes: NDArray[np.int32]
    ) -> Generator[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.bool_]], None, None]:
        """Yield ids (K,), rows (K, S, S, 3) and which rows failed (K,), chunk by chunk, in order.

        The rows are FFCV's buffer: copy them before taking the next chunk.

        Args:
            ids: sample ids of shape (M,).
            boxes: crop boxes of shape (M, 4), inside the images.
        """
        if not len(ids) or self._loader is None:
            return
        self._decoder.boxes[ids] = boxes
        self._decoder.status[:] = 0
        self._order.ids = np.ascontiguousarray(ids, dtype=np.int64)
        epoch = _Epoch(self._loader, self._loader.next_traversal_order())
        try:
            while (item := epoch.take()) is not None:
                if isinstance(item, BaseException):
                    first_line = next(iter(str(item).splitlines()), "")
                    raise FastrotError(
                        f"FFCV failed: {type(item).__name__}: {first_line}; "
                        "try --loader reference or dali"
                    ) from item
                chunk, rows = item
                yield chunk, rows, self._decoder.status[chunk] != DECODED
        finally:
            epoch.stop()

    def close(self) -> None:
        """Release the file and the buffers; safe to call twice."""
        self._loader = None
