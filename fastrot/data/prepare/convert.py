"""``fastrot prepare`` converts images on disk, in any layout of ``sources/``, to one ``.beton``.

Worker processes decode every image strictly and encode it, or the main process keeps its bytes. The
main process writes them in an order shuffled by the seed. A killed run continues with ``resume``
and ends with the same bytes as one that was never stopped. Importing this module does not import
torch.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import features

from fastrot import __version__
from fastrot.data.beton import BetonFile, BetonWriter, manifest
from fastrot.data.beton.labels import read_labels
from fastrot.data.beton.manifest import PIXELS_DECODED, Scalar
from fastrot.data.classes import lookalike_note
from fastrot.data.labels import PRESENT, Labels
from fastrot.data.prepare.encode import SHRINK_FILTER, Encoding, Payload
from fastrot.data.prepare.options import (
    Encode,
    PrepareReport,
    PrepareRequest,
    Skipped,
    check_output,
    estimate_bytes,
    fields_of,
    page_bytes,
)
from fastrot.data.prepare.read_ahead import ReadAhead
from fastrot.data.sampling.philox import Stream, philox_u64
from fastrot.data.sources.find import Source, SourceKind, list_source
from fastrot.errors import BadDataError, OutOfMemoryError, StorageError, UsageError
from fastrot.system.lock import RunLock
from fastrot.system.machine import usable_cores
from fastrot.system.progress import Meter
from fastrot.system.worker_pool import MAX_BATCH, WorkerPool

_SHUFFLE_EPOCH = 2**32 - 1  # no training epoch shuffles with the same numbers
_MIN_IMAGES_A_WORKER = 16
_JPEG_NAMES = (".jpg", ".jpeg", ".jpe", ".jfif")
_MOSTLY = 0.9  # fraction of the files


def prepare(request: PrepareRequest) -> PrepareReport:
    """Convert a dataset to a ``.beton`` file with a manifest.

    Every image is decoded, turned upright (EXIF) and stored as an RGB JPEG, unless bytes are
    copied; CIFAR's binary version is stored as raw pixels unless a quality is given. Labels become
    a field ``label`` of integers, or ``labels`` of shape (K,), int8, where an image can have
    several of K classes.

    Raises:
        UsageError: a path is wrong, or ``out`` exists.
        BadDataError: the source is not a dataset, or has a bad image and these are not skipped.
        MismatchError: another process is writing ``out``, or the run to be resumed was started with
            other settings.
        StorageError: the disk is full, or ``out`` cannot be written.
        OutOfMemoryError: a worker was killed.
    """
    started = time.monotonic()
    out, encoding = request.out, request.encoding
    check_output(out, overwrite=request.overwrite or request.resume)
    listing = list_source(
        request.source,
        kind=cast("SourceKind", request.kind),
        split=request.split,
        follow_symlinks=request.follow_symlinks,
    )
    report = PrepareReport(
        out=out,
        dry_run=request.dry_run,
        source=listing.root,
        kind=listing.kind,
        num_samples=len(listing),
        class_names=listing.class_names,
        left_out=listing.left_out,
        notes=tuple(_notes(request, listing)),
    )
    page_size = request.page_size or page_bytes(listing)
    if request.dry_run:
        size = estimate_bytes(listing, encoding, page_size)
        return replace(report, file_bytes=size)
    settings = encoding.settings() | {"seed": request.seed, "libraries": _libraries()}
    settings["shrink_filter"] = SHRINK_FILTER.name.lower()
    if request.resume and not request.overwrite and out.exists():
        return _finished(report, listing, settings)
    job = _Job(
        request=request,
        listing=listing,
        order=_shuffled(len(listing), request.seed),
        page_size=page_size,
        settings=settings,
    )
    done = _run(job, report)
    return replace(done, seconds=time.monotonic() - started)


_Pool = WorkerPool[int, Payload | Skipped] | ReadAhead[int, Payload | Skipped]


@dataclass(frozen=True)
class _Job:
    """A conversion; ``order`` is the index of the source image at each position of the file."""

    request: PrepareRequest
    listing: Source
    order: NDArray[np.int64]
    page_size: int
    settings: dict[str, Scalar]


@dataclass
class _Tally:
    """The outcome for the images of this run."""

    kept: int = 0
    reencoded: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)


def _run(job: _Job, report: PrepareReport) -> PrepareReport:
    """Write the file, from where an interrupted run stopped, and return the complete report."""
    request, listing = job.request, job.listing
    processes = usable_cores() if request.workers is None else request.workers
    if len(listing) < 2 * _MIN_IMAGES_A_WORKER:
        processes = 0
    identity = json.dumps({"source": listing.digest, **job.settings})
    # The workers start first, so that they do not keep the writer's files open.
    with (
        _pool(listing, request.encoding, processes) as pool,
        BetonWriter(
            request.out,
            fields_of(listing),
            capacity=len(listing),
            page_size=job.page_size,
            journal=identity,
            resume=request.resume,
        ) as writer,
    ):
        resumed = writer.num_samples
        try:
            tally = _convert(job, pool, writer)
            lost = _lost_classes(listing, writer.path)
        except (StorageError, OutOfMemoryError) as error:
            raise type(error)(f"{error}; to continue, rerun with --resume") from None
    return replace(
        report,
        num_samples=writer.num_samples,
        file_bytes=request.out.stat().st_size,
        resumed=resumed,
        kept=tally.kept,
        reencoded=dict(tally.reencoded),
        skipped=tuple(tally.skipped),
        lost_classes=lost,
    )


def _pool(listing: Source, encoding: Encoding, workers: int) -> _Pool:
    """Start processes, as encoding holds the GIL, or threads if most images keep their bytes."""
    encode = Encode(listing, encoding)
    jpegs = sum(path.lower().endswith(_JPEG_NAMES) for path in listing.paths)
    if encoding.copy and jpegs > _MOSTLY * len(listing):
        return ReadAhead(encode.keep, encode, encode.announce, threads=workers)
    return WorkerPool(encode, workers=workers)


def _convert(job: _Job, pool: _Pool, writer: BetonWriter) -> _Tally:
    """Encode, write and commit everything after the writer's last position."""
    listing, tally = job.listing, _Tally()
    labels = listing.labels
    try:
        # Checked again, now that no other process can be about to finish the file.
        check_output(writer.path, overwrite=job.request.overwrite)
    except UsageError:
        writer.discard()
        raise
    first = writer.last_position + 1
    samples = job.order[first:].tolist()
    # About a megabyte of images per message.
    batch = int(np.clip(2**20 // max(1, int(listing.sizes.mean())), 1, MAX_BATCH))
    meter = Meter("prepare", total=len(listing), done=first) if job.request.progress else None
    with meter or nullcontext():
        for position, sample, result in zip(
            itertools.count(first), samples, pool.map(samples, batch=batch), strict=False
        ):
            result = _fitting(result, listing.paths[sample], job.page_size)
            if isinstance(result, Payload):
                writer.add(result.image, labels[sample], position=position)
                if result.reencoded:
                    tally.reencoded[result.reencoded] += 1
                elif job.settings["copy"]:
                    tally.kept += 1
            elif job.request.on_bad_sample == "skip":
                tally.skipped.append(result)
            else:
                raise _bad_image(listing, result)
            if meter is not None:
                meter.advance(size=int(listing.sizes[sample]))
    if not writer.num_samples:
        writer.discard()
        raise BadDataError(
            f"{listing.root}: no valid image among {len(listing):,}; the first: "
            f"{tally.skipped[0].path!r}: {tally.skipped[0].reason}"
        )
    writer.commit(
        class_names=listing.class_names,
        source_hash=listing.digest,
        made_by=job.settings
        | {
            "program": f"fastrot {__version__} prepare",
            "kind": listing.kind,
            "order": "shuffled by Philox4x32-10",
            "pixels": "not decoded" if job.settings["copy"] else PIXELS_DECODED,
            "skipped": len(listing) - writer.num_samples,
        }
        | ({"left_out": str(listing.left_out)} if listing.left_out else {}),
    )
    return tally


def _finished(report: PrepareReport, listing: Source, settings: dict[str, Scalar]) -> PrepareReport:
    """Report on a run that had already finished when it was resumed.

    Raises:
        UsageError: the existing file was made with other settings or from another source.
        MismatchError: another process is writing it.
    """
    if manifest.is_staged(report.out):  # it was killed before the manifest got its final name
        with RunLock(report.out.with_name(f"{report.out.name}.lock"), what=str(report.out)):
            manifest.promote(report.out)
            report.out.with_name(f"{report.out.name}.journal").unlink(missing_ok=True)
    with BetonFile.open(report.out) as file:
        found = manifest.load(file)
        same = (
            found is not None
            and found.source_hash == listing.digest
            and all(found.made_by.get(key) == value for key, value in settings.items())
        )
        if not same:
            raise UsageError(
                f"{report.out}: already exists, made with other settings or from another source; "
                "choose another name or give --overwrite"
            )
        count, size = len(file), file.identity.size
    lost = _lost_classes(listing, report.out)
    return replace(report, num_samples=count, file_bytes=size, resumed=count, lost_classes=lost)


def _notes(request: PrepareRequest, listing: Source) -> list[str]:
    """Return notes on what is ambiguous in the source."""
    names = listing.class_names or ()
    notes = [lookalike_note(request.source, names)]
    ways = [path.split("/") for path in listing.paths] if listing.kind == "folder" else []
    inside = {(way[0], way[1]) for way in ways if len(way) > 2}
    if names and all(len(way) > 2 for way in ways) and len(inside) > len(names):
        group, first = min(inside)
        notes.append(
            f"classes are the folders of {listing.root}; the folders in them ({group}/{first} ...) "
            f"are merged: if those are the classes, name {listing.root / group}"
        )
    return [note for note in notes if note]


def _lost_classes(listing: Source, out: Path) -> tuple[str, ...]:
    """Return the source's classes that have no image in the file; usually there are none."""
    if listing.class_names is None:
        return ()
    with BetonFile.open(out) as file:
        if len(file) == len(listing):
            return ()
        kept = read_labels(file)
    assert kept is not None
    lost = _shown(listing.labels, len(listing.class_names)) & ~_shown(
        kept, len(listing.class_names)
    )
    return tuple(listing.class_names[i] for i in np.flatnonzero(lost))


def _shown(labels: Labels, num_classes: int) -> NDArray[np.bool_]:
    """Return which classes any image shows, shape (num_classes,)."""
    if labels.ndim == 2:
        shown: NDArray[np.bool_] = (labels == PRESENT).any(axis=0)
        return shown
    return np.bincount(labels, minlength=num_classes) > 0


def _shuffled(n: int, seed: int) -> NDArray[np.int64]:
    keys = philox_u64(seed, _SHUFFLE_EPOCH, np.arange(n, dtype=np.uint64), Stream.ORDER)
    return np.argsort(keys, kind="stable").astype(np.int64)


def _libraries() -> str:
    """Return the library versions that the bytes of a JPEG depend on."""
    return f"Pillow {features.version('pil')}, libjpeg-turbo {features.version('libjpeg_turbo')}"


def _fitting(result: Payload | Skipped, path: str, page_size: int) -> Payload | Skipped:
    if isinstance(result, Payload) and result.nbytes > page_size:
        reason = f"its {result.nbytes:,} bytes exceed a page of {page_size:,}; give --max-side"
        return Skipped(path, reason)
    return result


def _bad_image(source: Source, bad: Skipped) -> BadDataError:
    path = str(source.root / bad.path)
    return BadDataError(
        f"bad image {path if path.isprintable() else repr(path)}: {bad.reason}; repair or remove "
        "it and start again, or skip such images with --resume --on-bad-sample skip"
    )
