"""FFCV's Loader as a stream of decoded rows that can fail, stop and start again.

FFCV provides the reader, the page lookup, the compiled pipeline, the JPEG decoder and the resize.
The ids, the boxes and the main loop are implemented here, because in FFCV's own thread an exception
ends the loop silently, and the consumer then waits forever.

Importing this module imports FFCV, which sets the thread counts of torch and numba: import it
within ``thread_counts_kept``.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from pathlib import Path

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
from fastrot.errors import FastrotError
from fastrot.system.prefetch import Prefetcher

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
    """FFCV's producer of batches, without its thread: a ``Prefetcher`` runs ``batches``."""

    def start(self) -> None:
        """Start no thread."""

    def batches(self) -> Generator[tuple[NDArray[np.int64], NDArray[np.uint8]], None, None]:
        """Decode batch after batch, in the order of the ids.

        Raises:
            FastrotError: FFCV failed.
        """
        numba.set_num_threads(self.loader.num_workers)  # applies to this thread only
        slots = self.loader.batches_ahead + 2
        for number, ids in enumerate(self.iter_ixes):
            try:
                with _ONE_AT_A_TIME:
                    (rows,) = self.run_pipeline(number, ids, number % slots, None)
            except Exception as error:  # of any type
                first_line = next(iter(str(error).splitlines()), "")
                raise FastrotError(
                    f"FFCV failed: {type(error).__name__}: {first_line}; "
                    "try --loader reference or dali"
                ) from error
            yield ids, rows


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
        ahead = self._loader.batches_ahead
        with Prefetcher(epoch.batches(), depth=ahead, deadline=READ_DEADLINE_SECONDS) as batches:
            for chunk, rows in batches:
                yield chunk, rows, self._decoder.status[chunk] != DECODED

    def close(self) -> None:
        """Release the file and the buffers; safe to call twice."""
        self._loader = None
