"""The native loader: the threads of ``kernels.decode.crop`` read, decode and resize.

Batches are decoded ahead, directly into the memory in which they are delivered. Every JPEG is
decoded strictly, and samples of a ``.beton`` with checksums are verified as they are read. A sample
without a checksum that vouches for it is decoded to its end the first time, and afterwards only as
far as its crop reaches. The reference decoder judges a sample that fails, and reports or replaces
it as in every other loader.

Tolerance: if ``exact`` is set, no value differs by more than one level from the reference.
Otherwise, boxes at least twice as large as the crop are shrunk in the DCT domain, by 2, 4 or 8. The
difference from the exact crop depends on the factor left to the resize and on the crop size:

===================================  =============  ==================  =============
side of the box / side of the crop   mean, levels   mean of worst crop  worst pixel
===================================  =============  ==================  =============
below 2                              0              0                   0
2, 4, 8 (nothing left), crop 16, 32  3.2 to 4.8     17                  110
2, 4, 8 (nothing left), crop >= 48   2.4 to 4.1     14                  110
3, 6 (a factor of 1.5 left)          1.1 to 2.0     6                   60
random_resized, shrunk crops only    1.2 to 1.6     6                   90
===================================  =============  ==================  =============

Measured on 300 photos of about 500 px and 700 of 128 px. Of crops of 224 px, only 3 % are shrunk
from the former (0.03 levels over all of them), but half are from the latter (0.6 levels).

Shapes: a batch has N source images; a crop has side S.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.beton.format import MAX_PIXELS, RAW
from fastrot.data.dataset import BadSampleError, Dataset, Encoded, decode_sample
from fastrot.data.loader import READ_DEADLINE_SECONDS, Batch, LoaderSpec
from fastrot.data.loaders.base import BaseLoader
from fastrot.data.loaders.buffers import batch_buffers
from fastrot.data.sampling.draw import BatchDraw
from fastrot.data.subset import DatasetSubset
from fastrot.data.tar.dataset import TarDataset
from fastrot.errors import StorageError
from fastrot.kernels.decode.crop import CropDecoder, CropJob, Crops, SourceFile
from fastrot.system.in_flight import InFlight
from fastrot.system.machine import free_memory
from fastrot.system.prefetch import Prefetcher

_BATCHES_AHEAD = 3
_SAMPLES_A_THREAD = 8  # samples decoded ahead per thread, at least, if batches are small
_POLL_SECONDS = 0.2  # between two checks for signals
_MAPPED_SHARE = 0.5  # largest fraction of the free memory that a mapped file may fill

_JPEG = b"\xff\xd8"

Stored = bytes | memoryview | NDArray[np.uint8]
"""A JPEG file, or pixels as a flat array of bytes."""


class _Opened(NamedTuple):
    """A ``.beton``, the ids of the samples in use (None: all), and the file that threads read."""

    dataset: BetonDataset
    ids: NDArray[np.int64] | None
    file: SourceFile


class _Prepared(NamedTuple):
    """A batch that was drawn, with its bytes if Python reads them."""

    drawn: BatchDraw
    crops: Crops
    files: list[Stored] | None


class _Submitted(NamedTuple):
    """A batch that the threads are decoding."""

    drawn: BatchDraw
    judged: NDArray[np.bool_]  # rows that are decoded to their end
    images: NDArray[np.uint8]
    job: CropJob


class NativeLoader(BaseLoader):
    """Loads batches with the extension's threads; see the ``Loader`` contract.

    Args:
        spec: everything that a loader needs; ``workers`` is the number of threads; 0: one thread,
            which works only while the caller waits for it.

    Attributes:
        reads: how the dataset is read and why, in one line.

    Raises:
        KernelUnavailableError: the extension was built without decoding.
    """

    def __init__(self, spec: LoaderSpec) -> None:
        super().__init__(spec)
        self._opened, self.reads = _open(spec.dataset)
        threads = max(1, spec.workers)
        self._decoder = CropDecoder(
            threads,
            size=spec.crop.size,
            exact=spec.exact,
            colour_only=self._opened is not None,
            max_pixels=MAX_PIXELS,
        )
        wanted = -(-_SAMPLES_A_THREAD * threads // self.batch_size)
        self._ahead = max(_BATCHES_AHEAD, wanted) if spec.workers else 0
        self._buffers = batch_buffers(
            self.batch_size, spec.crop.size, keep=self._ahead + 2, device=spec.device
        )
        # Samples that need not be decoded beyond their crop, because the whole is known to be good.
        good = self._opened is not None and self._opened.dataset.checksums_suffice
        self._good = np.full(self.num_samples, good)

    def _batches(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        window = InFlight(self._submit, self._finish, ahead=self._ahead)
        prepared: Iterator[_Prepared] = self._prepared(epoch, start_step)
        if self._opened is None and self._ahead:
            # Reading files takes Python time; a thread does it while the caller computes.
            prepared = Prefetcher(
                self._prepared(epoch, start_step), depth=2, deadline=READ_DEADLINE_SECONDS
            )
        try:
            yield from window.map(prepared)
        finally:
            if isinstance(prepared, Prefetcher):
                prepared.close()
            if window.jobs and self._decoder.discard():
                for job in window.jobs:
                    self._buffers.give_back(job.images)

    def _prepared(self, epoch: int, start_step: int) -> Generator[_Prepared, None, None]:
        for drawn in self._draws(epoch, start_step):
            orientation = np.ones(len(drawn), np.uint8)
            files = None
            if self._opened is None:
                files, raw = self._read(drawn, orientation)
            else:
                raw = self._opened.dataset.file.modes[self._inner(drawn.ids)] == RAW
            crops = Crops(
                boxes=drawn.boxes,
                sizes=drawn.sizes,
                orientation=orientation,
                raw=raw,
                to_end=~self._good[drawn.ids],
            )
            yield _Prepared(drawn, crops, files)

    def _read(
        self, drawn: BatchDraw, orientation: NDArray[np.uint8]
    ) -> tuple[list[Stored], NDArray[np.bool_]]:
        """Read a batch of single files; everything but JPEG is decoded to pixels here."""
        dataset = self.spec.dataset
        raw = np.zeros(len(drawn), np.bool_)
        files: list[Stored] = []
        for row in range(len(raw)):
            while True:
                sample = int(drawn.ids[row])
                try:
                    encoded = dataset.read(sample)
                    if encoded.kind == "file" and encoded.data[:2] == _JPEG:
                        orientation[row] = encoded.orientation
                        files.append(encoded.data)
                    else:
                        raw[row] = True
                        files.append(_pixels(dataset, sample, encoded))
                    break
                except BadSampleError as error:
                    self._drawer.replace(drawn, row, error)
        return files, raw

    def _submit(self, batch: _Prepared) -> _Submitted:
        images = self._buffers.take(len(batch.drawn))
        if self._opened is None:
            assert batch.files is not None
            job = self._decoder.submit_memory(images, batch.crops, batch.files)
        else:
            spans = self._opened.dataset.spans(self._inner(batch.drawn.ids))
            job = self._decoder.submit(
                images, batch.crops, self._opened.file, spans, announce=self._ahead > 0
            )
        return _Submitted(batch.drawn, batch.crops.to_end, images, job)

    def _finish(self, submitted: _Submitted) -> Batch:
        drawn, judged, images, job = submitted
        end = time.monotonic() + READ_DEADLINE_SECONDS
        while not job.wait(_POLL_SECONDS):
            if time.monotonic() > end:
                raise StorageError(
                    f"no batch for {READ_DEADLINE_SECONDS:.0f} s: the storage of "
                    f"{self.spec.dataset.path} stalls"
                )
        failed = [row for row, _ in job.failures()]
        if judged.any():
            judged[failed] = False
            self._good[drawn.ids[judged]] = True
        if failed:
            # Imported only if needed: torchvision takes seconds.
            from fastrot.data.loaders.reference import decode_row
        for row in failed:
            # The reference decoder judges what failed here: correct pixels or an error.
            images[row] = decode_row(self._drawer, drawn, row)
        return self._batch(self._buffers.deliver(images), drawn)

    def _inner(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        assert self._opened is not None
        return ids if self._opened.ids is None else self._opened.ids[ids]

    def _release(self) -> None:
        self._decoder.discard()
        self._buffers.close()
        self._opened = None


def _open(dataset: Dataset) -> tuple[_Opened | None, str]:
    """Open the ``.beton`` behind a dataset for the threads; also return a line that says how."""
    inner, ids = dataset, None
    while isinstance(inner, DatasetSubset):
        ids = inner.ids if ids is None else inner.ids[ids]
        inner = inner.dataset
    if not isinstance(inner, BetonDataset):
        what = "tar shards" if isinstance(inner, TarDataset) else "single files"
        return None, f"{what}, read one image at a time"
    size, free = inner.file.identity.size, free_memory()
    fits = size <= _MAPPED_SHARE * free
    why = f"{size / 1e9:,.2f} GB, {free / 1e9:,.1f} GB of memory free"
    file = SourceFile(inner.file.descriptor, map_memory=fits)
    how = "mapped into memory" if file.mapped else "read by position"
    return _Opened(inner, ids, file), f"{how} ({why})"


def _pixels(dataset: Dataset, sample: int, encoded: Encoded) -> NDArray[np.uint8]:
    """Return the upright pixels of a sample that is not a JPEG, as a flat array of bytes."""
    if encoded.kind == "raw":
        return np.frombuffer(encoded.data, np.uint8)
    return np.ascontiguousarray(decode_sample(dataset, sample)).reshape(-1)
