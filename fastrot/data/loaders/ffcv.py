"""The FFCV loader: FFCV 1.0.2 reads, decodes and resizes; all randomness is drawn here.

It reads only ``.beton`` files in which every sample has been checked: FFCV itself checks nothing
and returns stale pixels, or crashes, on damaged data.

Tolerance: FFCV decodes with libjpeg-turbo's fast DCT and resizes with OpenCV's INTER_AREA, while
the reference uses the accurate DCT and an antialiased triangle filter. If a box shrinks or keeps
its size, both average the same pixels with different weights; if it grows, INTER_AREA nearly
repeats pixels. tests/fastrot/data/test_loader.py holds the bounds for 128 px photos.

Shapes: a batch has N source images; a crop has side S; an epoch has M samples.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.data.beton.damage import bad_samples
from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.loader import Batch, LoaderSpec
from fastrot.data.loaders.base import BaseLoader
from fastrot.data.loaders.reference import decode_row
from fastrot.data.loaders.thread_counts import thread_counts_kept
from fastrot.data.sampling.draw import BatchDraw
from fastrot.errors import MismatchError, UsageError

if TYPE_CHECKING:
    from fastrot.data.loaders.ffcv_stream import FfcvStream

_Chunk = tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.bool_]]


class FfcvLoader(BaseLoader):
    """Loads batches with FFCV; see the ``Loader`` contract.

    The constructor checks every sample, once per file: the result is stored beside the file. The
    first batch takes a few seconds longer because numba compiles.

    Args:
        spec: everything that a loader needs; ``workers`` is the number of threads.

    Raises:
        UsageError: the dataset is not a .beton file.
        MismatchError: crops leave the image, which FFCV's resize cannot do.
        BadSampleError: a sample is bad, and bad samples are fatal.
    """

    def __init__(self, spec: LoaderSpec) -> None:
        super().__init__(spec)
        dataset = spec.dataset
        if not isinstance(dataset, BetonDataset):
            raise UsageError(
                f"{dataset.path}: FFCV reads only .beton files; use --loader native, dali or "
                "reference, or make one from a folder with fastrot prepare FOLDER OUT.beton"
            )
        if spec.crop.leaves_image:
            raise MismatchError(
                f"data.padding={spec.crop.padding}: FFCV cannot draw crops that leave the image; "
                "use --loader native, dali or reference, or --set data.padding=0"
            )
        self._bad = bad_samples(dataset, workers=spec.workers)
        if self._bad and spec.on_bad_sample == "fail":
            error = self._bad[min(self._bad)]
            error.can_be_skipped = True
            raise error
        with thread_counts_kept():
            from fastrot.data.loaders.ffcv_stream import FfcvStream
        self._stream: FfcvStream = FfcvStream(
            dataset.path,
            [field.name for field in dataset.file.fields],
            dataset.image_field,
            self.num_samples,
            size=spec.crop.size,
            chunk=self.batch_size,
            workers=spec.workers,
        )

    def _batches(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        batches = list(self.spec.sampler.batches(epoch, start_step))
        # FFCV needs all boxes before it begins, and one call is faster than many.
        ids = np.concatenate(batches) if batches else np.zeros(0, np.int64)
        whole = self._drawer.draw(epoch, ids)
        draws = whole.split([len(batch) for batch in batches])
        for drawn in draws:
            self._replace_known(drawn)
        reader = _RowReader(self._stream.rows(whole.ids.copy(), whole.boxes))
        try:
            for drawn in draws:
                images = self._empty(len(drawn))
                failed = reader.read_into(images.numpy())
                for row in np.flatnonzero(failed).tolist():
                    # The reference decoder judges what libjpeg refused here: it returns correct
                    # pixels, raises an error, or replaces the sample as in the other loaders.
                    images[row] = torch.from_numpy(decode_row(self._drawer, drawn, row))
                yield self._batch(images, drawn)
        finally:
            reader.close()

    def _replace_known(self, drawn: BatchDraw) -> None:
        """Replace the samples of a batch that the check found bad, as ``decode_batch`` would."""
        if self._bad:
            for row in range(len(drawn)):
                while (error := self._bad.get(int(drawn.ids[row]))) is not None:
                    self._drawer.replace(drawn, row, error)

    def _empty(self, count: int) -> torch.Tensor:
        size = self.spec.crop.size
        pinned = self.spec.device.type == "cuda"
        return torch.empty((count, size, size, 3), dtype=torch.uint8, pin_memory=pinned)

    def _release(self) -> None:
        self._stream.close()


class _RowReader:
    """Regroups a stream of chunks into batches of any size."""

    def __init__(self, chunks: Generator[_Chunk, None, None]) -> None:
        self._chunks = chunks
        self._rows: NDArray[np.uint8] = np.zeros((0, 0, 0, 3), np.uint8)
        self._failed: NDArray[np.bool_] = np.zeros(0, np.bool_)

    def read_into(self, images: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Fill images (N, S, S, 3) with the next N rows; return which of them failed, (N,)."""
        failed = np.zeros(len(images), np.bool_)
        done = 0
        while done < len(images):
            if not len(self._rows):
                _, self._rows, self._failed = next(self._chunks)
            count = min(len(self._rows), len(images) - done)
            images[done : done + count] = self._rows[:count]
            failed[done : done + count] = self._failed[:count]
            self._rows, self._failed = self._rows[count:], self._failed[count:]
            done += count
        return failed

    def close(self) -> None:
        """End the stream."""
        self._chunks.close()
