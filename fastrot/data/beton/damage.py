"""The damaged samples of a ``.beton`` file, found once and noted beside the file.

To find them, every byte is read and every image decoded strictly. With the compiled decoder, its
threads do so without Python: they read each JPEG to its end but produce only an eighth of its
pixels per side, since whatever the decoder warns about is in the codes, which are all read.
Without it, worker processes decode one image after the other.

The note (``FILE.beton.checked.json``, or a file in the user's cache if that place is read-only)
identifies the exact file it describes. It only saves time: if it is missing or damaged, the file
is checked again.

Importing this module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.beton.format import JPEG, MAX_PIXELS, RAW, Kind
from fastrot.data.beton.manifest import Manifest
from fastrot.data.beton.reader import BetonFile
from fastrot.data.dataset import BadSampleError
from fastrot.data.images.decode import DecodeError, decode_image
from fastrot.errors import FastrotError, StorageError
from fastrot.kernels.decode.crop import CropDecoder, CropJob, Crops, SourceFile, Spans
from fastrot.kernels.dispatch import KernelUnavailableError, choose
from fastrot.system.files import write_atomic
from fastrot.system.in_flight import InFlight
from fastrot.system.progress import Meter
from fastrot.system.worker_pool import DEADLINE_SECONDS, WorkerPool

Checksums = NDArray[np.uint64]
Advance = Callable[[int, int], None]
"""Called with the number of samples just checked, and their bytes."""

_CHUNK = 256  # samples that the threads receive at a time
_CHUNKS_AHEAD = 4
_POLL_SECONDS = 0.2  # between checks for signals
_MIN_SAMPLES_A_WORKER = 256
_PROGRESS_BYTES = 2**28  # smaller files take only a moment

_NOTE_FORMAT, _NOTE_VERSION = "fastrot-beton-checked", 1
_NOTE_SUFFIX = ".checked.json"
_MAX_NOTE_BYTES = 2**26


def bad_samples(dataset: BetonDataset, *, workers: int = 0) -> dict[int, BadSampleError]:
    """Return the errors of the bad samples of a file, by sample id.

    If the manifest says that all images were decoded when the file was made, checksums are
    compared; otherwise every image is decoded, now or by an earlier ``fastrot verify``.

    Args:
        dataset: the open file.
        workers: threads or processes that share the work; 0: only this process.

    Raises:
        StorageError: the file cannot be read.
        BadDataError: it changes meanwhile.
    """
    found = known_bad_samples(dataset)
    if found is not None:
        return found
    file = dataset.file
    big = file.identity.size >= _PROGRESS_BYTES
    meter = Meter(f"check {dataset.path.name} (once)", total=len(dataset)) if big else None
    with meter or nullcontext():
        reasons = find_damage(
            file,
            dataset.checksums,
            decode=not dataset.checksums_suffice,
            workers=workers,
            advance=None if meter is None else meter.advance,
        )
    dataset.check_unchanged()
    _write_note(_identity(file, dataset.digest, dataset.checksums_suffice), dataset.path, reasons)
    return _errors(dataset, reasons)


def known_bad_samples(dataset: BetonDataset) -> dict[int, BadSampleError] | None:
    """Return ``bad_samples`` from an earlier check of exactly this file, or None without one."""
    identity = _identity(dataset.file, dataset.digest, dataset.checksums_suffice)
    for place in (_beside(dataset.path), _in_cache(dataset.path)):
        if (reasons := _read_note(place, identity, len(dataset))) is not None:
            return _errors(dataset, reasons)
    return None


def remember_damage(file: BetonFile, manifest: Manifest | None, reasons: Mapping[int, str]) -> None:
    """Save the result of a complete check: every checksum compared, every image decoded.

    Raises:
        BadDataError: the file changed meanwhile.
    """
    file.check_unchanged()
    digest = file.structure if manifest is None else manifest.digest
    suffice = manifest is not None and manifest.pixels_decoded
    _write_note(_identity(file, digest, suffice), file.path, reasons)


def find_damage(
    file: BetonFile,
    checksums: Checksums | None,
    *,
    decode: bool = True,
    workers: int,
    advance: Advance | None = None,
) -> dict[int, str]:
    """Return what is wrong with each damaged sample of an open file, in order.

    Args:
        file: the open file, whose structure was checked on opening.
        checksums: checksums from its manifest, of shape (n,), or None.
        decode: also decode the images, and read the JSON fields.
        workers: number of threads or processes; 0: no processes, or a single thread.
        advance: called with the progress.

    Raises:
        StorageError: nothing was read for ``DEADLINE_SECONDS``.
        OutOfMemoryError: a worker was killed.
    """
    check = _Check(file, checksums, decode)
    if decode and _native_can(file):
        suspects = sorted(set(_failures(file, checksums, max(1, workers), advance)))
        # Python decides in the end, and states the reason.
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
    """Return whether the compiled decoder is available and can check all fields of the file."""
    kinds = {field.kind for field in file.fields}
    if Kind.IMAGE not in kinds or Kind.JSON in kinds:
        return False
    try:
        choose("crop_decode")
    except KernelUnavailableError:
        return False
    return True


class _Chunk(NamedTuple):
    """Samples, the bytes to count for them (once), and the work for the threads."""

    ids: NDArray[np.int64]
    size: int
    crops: Crops
    spans: Spans


def _failures(
    file: BetonFile, checksums: Checksums | None, threads: int, advance: Advance | None
) -> Iterator[int]:
    """Yield the samples that the compiled decoder refuses."""
    decoder = CropDecoder(threads, size=1, exact=False, colour_only=True, max_pixels=MAX_PIXELS)
    # Read by position, not mapped: a file may exceed memory, and each byte is read only once.
    source = SourceFile(file.descriptor, map_memory=False)

    def submit(chunk: _Chunk) -> tuple[_Chunk, CropJob]:
        return chunk, decoder.submit(None, chunk.crops, source, chunk.spans, announce=True)

    def finish(submitted: tuple[_Chunk, CropJob]) -> list[int]:
        chunk, job = submitted
        failed: list[int] = chunk.ids[_failed_rows(job, file.path)].tolist()
        if advance is not None and chunk.size:
            advance(len(chunk.ids), chunk.size)
        return failed

    try:
        for failed in InFlight(submit, finish, ahead=_CHUNKS_AHEAD).map(_chunks(file, checksums)):
            yield from failed
    finally:
        decoder.discard()


def _chunks(file: BetonFile, checksums: Checksums | None) -> Iterator[_Chunk]:
    """Yield all samples, once for each image field."""
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
            # Checksums cover all fields of a sample, so comparing them once is enough.
            compared = checksums[ids] if first and checksums is not None else None
            spans = Spans(offsets, sizes, in_pages.index(name), records[ids], compared)
            yield _Chunk(ids, int(sizes.sum()) if first else 0, crops, spans)


def _failed_rows(job: CropJob, path: Path) -> list[int]:
    end = time.monotonic() + DEADLINE_SECONDS
    while not job.wait(_POLL_SECONDS):
        if time.monotonic() > end:
            raise StorageError(
                f"{path}: nothing was read for {DEADLINE_SECONDS:.0f} s: the storage stalls"
            )
    return [row for row, _ in job.failures()]


class _Check:
    """A callable that returns what is wrong with a sample, or None, and its number of bytes."""

    def __init__(self, file: BetonFile, checksums: Checksums | None, decode: bool) -> None:
        self._file, self._checksums, self._decode = file, checksums, decode

    def __call__(self, sample: int) -> tuple[str | None, int]:
        try:
            payloads = self._file.payloads(sample)
            size = sum(map(len, payloads.values()))
            if self._checksums is not None:
                found = self._file.checksum(sample, payloads)
                if found != self._checksums[sample]:
                    return "its bytes do not match the checksum in the manifest", size
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
                decode_image(payloads[field.name], apply_exif=False, max_pixels=MAX_PIXELS)
            elif field.kind is Kind.JSON:
                self._file.value(sample, field.name)


# The note beside the file


def _errors(dataset: BetonDataset, reasons: Mapping[int, str]) -> dict[int, BadSampleError]:
    return {i: BadSampleError(i, dataset.name(i), why) for i, why in reasons.items()}


def _identity(file: BetonFile, digest: str, checksums_suffice: bool) -> dict[str, Any]:
    return {
        "format": _NOTE_FORMAT,
        "version": _NOTE_VERSION,
        "file": list(file.identity),
        "digest": digest,
        "by": "checksums" if checksums_suffice else "decoding",
    }


def _write_note(identity: dict[str, Any], beton: Path, reasons: Mapping[int, str]) -> None:
    note = identity | {"bad": {str(sample): reason for sample, reason in reasons.items()}}
    for place in (_beside(beton), _in_cache(beton)):
        try:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(place, json.dumps(note, indent=1).encode())
            return
        except OSError:  # read-only: try the next place, or else check again next time
            continue


def _read_note(place: Path, identity: dict[str, Any], count: int) -> dict[int, str] | None:
    """Return the result of an earlier check of exactly this file, or None."""
    try:
        with open(place, "rb") as file:
            note = json.loads(file.read(_MAX_NOTE_BYTES))
        reasons = {int(sample): str(why) for sample, why in note.pop("bad").items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None  # missing or damaged: the file is checked again
    if note != identity or any(not 0 <= sample < count for sample in reasons):
        return None
    return reasons


def _beside(beton: Path) -> Path:
    return beton.with_name(beton.name + _NOTE_SUFFIX)


def _in_cache(beton: Path) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(os.fsencode(beton.resolve())).hexdigest()[:32]
    return Path(root) / "fastrot" / f"{name}{_NOTE_SUFFIX}"
