"""Which samples of a ``.beton`` file are damaged: every byte is read, every image decoded strictly.

Where the compiled decoder is there, its threads do it, without Python. They read each JPEG to its
end but make only an eighth of its pixels a side: what the decoder warns about lies in the codes,
and these are all read. Otherwise processes decode one image after the other.

Importing this module imports no torch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from fastrot.data.beton_format import JPEG, MAX_PIXELS, RAW, Kind
from fastrot.data.beton_reader import BetonFile
from fastrot.data.images import DecodeError, decode_image
from fastrot.data.samples import BadSampleError
from fastrot.data.workers import DEADLINE_SECONDS, WorkerPool
from fastrot.errors import FastrotError, StorageError
from fastrot.kernels.decode.crop import CropDecoder, CropJob, Crops, SourceFile, Spans
from fastrot.kernels.dispatch import KernelUnavailableError, choose

Checksums = NDArray[np.uint64]
Advance = Callable[[int, int], None]
"""Called with a number of samples that are done, and their bytes."""

_CHUNK = 256  # samples that the threads are given at a time
_CHUNKS_AHEAD = 4
_POLL_SECONDS = 0.2  # between two looks at signals
_MIN_SAMPLES_A_WORKER = 256


def find_damage(
    file: BetonFile,
    checksums: Checksums | None,
    *,
    decode: bool = True,
    workers: int,
    advance: Advance | None = None,
) -> dict[int, str]:
    """The damaged samples of an open file, in order, and what is wrong with each.

    Args:
        file: its structure is sound, or it would not be open.
        checksums: of shape (n,), from its manifest; None: there are none.
        decode: also decode the images, and read the JSON fields.
        workers: threads or processes; 0: none, or a single thread.
        advance: told of the progress.

    Raises:
        StorageError: nothing was read for ``DEADLINE_SECONDS``.
        OutOfMemoryError: a worker was killed.
    """
    check = _Check(file, checksums, decode)
    if decode and _native_can(file):
        suspects = sorted(set(_failures(file, checksums, max(1, workers), advance)))
        # The words, and the last word, are Python's.
        judged = {sample: check(sample)[0] for sample in suspects}
        return {sample: reason for sample, reason in judged.items() if reason is not None}
    if len(file) < 2 * _MIN_SAMPLES_A_WORKER:
        workers = 0
    found = {}
    with WorkerPool(check, workers=workers) as pool:
        for sample, (reason, size) in enumerate(pool.map(range(len(file)))):
            if reason is not None:
                found[sample] = reason
            if advance is not None:
                advance(1, size)
    return found


def _native_can(file: BetonFile) -> bool:
    """Whether the compiled decoder can check all that is in the file, and is there."""
    kinds = {field.kind for field in file.fields}
    if Kind.IMAGE not in kinds or Kind.JSON in kinds:
        return False
    try:
        choose("crop_decode")
    except KernelUnavailableError:
        return False
    return True


def _failures(
    file: BetonFile, checksums: Checksums | None, threads: int, advance: Advance | None
) -> Iterator[int]:
    """Samples that the compiled decoder refuses."""
    decoder = CropDecoder(threads, size=1, exact=False, colour_only=True, max_pixels=MAX_PIXELS)
    # By position: a file may be larger than the memory, and each byte is read but once.
    source = SourceFile(file.descriptor, map_memory=False)
    jobs: deque[tuple[NDArray[np.int64], int, CropJob]] = deque()
    try:
        for ids, size, crops, spans in _work(file, checksums):
            jobs.append((ids, size, decoder.submit(None, crops, source, spans, announce=True)))
            if len(jobs) > _CHUNKS_AHEAD:
                yield from _finish(*jobs.popleft(), file, advance)
        while jobs:
            yield from _finish(*jobs.popleft(), file, advance)
    finally:
        decoder.discard()


def _work(
    file: BetonFile, checksums: Checksums | None
) -> Iterator[tuple[NDArray[np.int64], int, Crops, Spans]]:
    """Chunks of samples, the bytes to count for them (once), and what the threads are to do."""
    in_pages = [field.name for field in file.fields if not field.is_scalar]
    images = [field.name for field in file.fields if field.kind is Kind.IMAGE]
    records = file.metadata.view(np.uint8).reshape(len(file), -1)
    for name in images:
        column = file.metadata[str([field.name for field in file.fields].index(name))]
        first = name == images[0]
        for start in range(0, len(file), _CHUNK):
            ids = np.arange(start, min(start + _CHUNK, len(file)))
            offsets, sizes = file.spans(ids)
            whole = np.zeros((len(ids), 4), np.int32)
            whole[:, 2], whole[:, 3] = column["width"][ids], column["height"][ids]
            crops = Crops(
                boxes=whole,
                sizes=np.ascontiguousarray(whole[:, 2:]),
                orientation=np.ones(len(ids), np.uint8),
                raw=column["mode"][ids] == RAW,
                to_end=np.ones(len(ids), np.bool_),
            )
            # Checksums cover all fields of a sample: once is enough.
            compared = checksums[ids] if first and checksums is not None else None
            spans = Spans(offsets, sizes, in_pages.index(name), records[ids], compared)
            yield ids, int(sizes.sum()) if first else 0, crops, spans


def _finish(
    ids: NDArray[np.int64], size: int, job: CropJob, file: BetonFile, advance: Advance | None
) -> Iterator[int]:
    end = time.monotonic() + DEADLINE_SECONDS
    while not job.wait(_POLL_SECONDS):
        if time.monotonic() > end:
            raise StorageError(
                f"{file.path}: nothing was read for {DEADLINE_SECONDS:.0f} s: the storage stalls"
            )
    for row, _ in job.failures():
        yield int(ids[row])
    if advance is not None and size:
        advance(len(ids), size)


class _Check:
    """Called with a sample: what is wrong with it, or None, and its bytes."""

    def __init__(self, file: BetonFile, checksums: Checksums | None, decode: bool) -> None:
        self._file, self._checksums, self._decode = file, checksums, decode

    def __call__(self, sample: int) -> tuple[str | None, int]:
        try:
            payloads = self._file.payloads(sample)
            size = sum(map(len, payloads.values()))
            if self._checksums is not None:
                found = self._file.checksum(sample, payloads)
                if found != self._checksums[sample]:
                    return "its bytes do not have the checksum of the manifest", size
            if self._decode:
                self._read_values(sample, payloads)
        except (BadSampleError, DecodeError) as error:
            return error.reason, 0
        except FastrotError as error:  # the file was cut meanwhile, or cannot be read there
            return str(error), 0
        return None, size

    def _read_values(self, sample: int, payloads: dict[str, bytes]) -> None:
        for position, field in enumerate(self._file.fields):
            row = self._file.metadata[str(position)][sample]
            if field.kind is Kind.IMAGE and row["mode"] == JPEG:
                decode_image(payloads[field.name], apply_exif=False)
            elif field.kind is Kind.JSON:
                self._file.value(sample, field.name)
