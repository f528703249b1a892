"""``fastrot prepare``: images on disk, of any layout that ``sources.py`` knows, to one ``.beton``.

Processes decode every image strictly and encode it, or this one keeps its bytes; this one
writes, in an order that is a shuffle keyed by the seed. A killed run goes on with ``resume``
and ends with the same bytes as one that was never stopped. Importing this module imports no torch.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import features

from fastrot import __version__
from fastrot.data.beton import BetonFile, BetonWriter, manifest
from fastrot.data.beton.manifest import PIXELS_DECODED, Scalar
from fastrot.data.prepare.encode import SHRINK_FILTER, Encoding, Payload
from fastrot.data.prepare.options import (
    Encode,
    PrepareReport,
    Skipped,
    check_options,
    check_output,
    estimate_bytes,
    fields_of,
    page_bytes,
)
from fastrot.data.prepare.read_ahead import ReadAhead
from fastrot.data.sampling.philox import Stream, philox_u64
from fastrot.data.sources.find import Source, SourceKind, list_source
from fastrot.errors import BadDataError, OutOfMemoryError, StorageError, UsageError
from fastrot.system.machine import usable_cores
from fastrot.system.progress import Meter
from fastrot.system.worker_pool import MAX_BATCH, WorkerPool

_SHUFFLE_EPOCH = 2**32 - 1  # no epoch of training shuffles with these numbers again
_MIN_IMAGES_A_WORKER = 16
_JPEG_NAMES = (".jpg", ".jpeg")
_MOSTLY = 0.9  # of the files


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    kind: SourceKind = "auto",
    split: str | None = None,
    max_side: int | None = None,
    quality: int | None = None,
    copy: bool = False,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    page_size: int | None = None,
    follow_symlinks: bool = False,
    on_bad_sample: Literal["fail", "skip"] = "fail",
    dry_run: bool = False,
    progress: bool = True,
) -> PrepareReport:
    """Convert a data set to a ``.beton`` file with a manifest.

    Every image is decoded, turned upright (EXIF) and stored as an RGB JPEG; CIFAR's binary
    version is stored as raw pixels unless a quality is given. Labels become a field ``label`` of
    integers, or ``labels`` of shape (K,), int8, where an image can have several of K classes.

    Args:
        source: the folder; see ``list_source`` for the layouts.
        out: the file to write; its folder must exist.
        kind: what the source is; ``auto`` looks.
        split: which part of a source that has parts.
        max_side: shrink images until the longest side is at most this, in pixels; never enlarge.
        quality: of the JPEGs, 1 to 100; None: 90.
        copy: keep the bytes of the JPEGs that need no change, of which only the markers are
            checked; the others are stored with quality 90, counted and listed by reason.
        workers: processes that decode and encode, or threads that copy; None: the cores this
            process may use; 0: none.
        resume: go on with an interrupted run with the same settings, if there is one; a finished
            one is left as it is.
        overwrite: replace a file that is already there (when the new one is complete).
        seed: of the order of the images in the file.
        page_size: bytes, a power of two from 2 MiB to 2 GiB; None: chosen by the source.
        follow_symlinks: also read links that lead out of the source folder.
        on_bad_sample: ``fail`` names the first bad image and stops; ``skip`` leaves them out and
            lists them.
        dry_run: only say what would be done.
        progress: show a progress bar, or lines, on standard error.

    Raises:
        UsageError: a path or an option is wrong, or ``out`` exists.
        BadDataError: the source is no data set, or has a bad image.
        MismatchError: another process writes ``out``, or what is to be resumed was begun with
            other settings.
        StorageError: the disk is full, or ``out`` cannot be written.
        OutOfMemoryError: a worker was killed.
    """
    started = time.monotonic()
    out = Path(out)
    encoding = check_options(
        max_side=max_side,
        quality=quality,
        copy=copy,
        workers=workers,
        seed=seed,
        on_bad_sample=on_bad_sample,
    )
    check_output(out, overwrite=overwrite or resume)
    listing = list_source(source, kind=kind, split=split, follow_symlinks=follow_symlinks)
    report = PrepareReport(
        out=out,
        dry_run=dry_run,
        source=listing.root,
        kind=listing.kind,
        num_samples=len(listing),
        class_names=listing.class_names,
    )
    page_size = page_size or page_bytes(listing)
    if dry_run:
        size = estimate_bytes(listing, encoding, page_size)
        return replace(report, file_bytes=size)
    settings = asdict(encoding) | {"seed": seed, "libraries": _libraries()}
    settings["shrink_filter"] = SHRINK_FILTER.name.lower()
    if resume and not overwrite and out.exists():
        return _finished(report, listing, settings)
    job = _Job(
        listing=listing,
        order=_shuffled(len(listing), seed),
        page_size=page_size,
        skip_bad=on_bad_sample == "skip",
        overwrite=overwrite,
        settings=settings,
        progress=progress,
    )
    processes = usable_cores() if workers is None else workers
    if len(listing) < 2 * _MIN_IMAGES_A_WORKER:
        processes = 0
    identity = json.dumps({"source": listing.digest, **settings})
    # The workers start first, so that they hold none of the writer's files open.
    with (
        _pool(listing, encoding, processes) as pool,
        BetonWriter(
            out,
            fields_of(listing),
            capacity=len(listing),
            page_size=page_size,
            journal=identity,
            resume=resume,
        ) as writer,
    ):
        resumed = writer.num_samples
        try:
            tally = _convert(job, pool, writer)
        except (StorageError, OutOfMemoryError) as error:
            raise type(error)(f"{error}; then go on with --resume") from None
    return replace(
        report,
        num_samples=writer.num_samples,
        file_bytes=out.stat().st_size,
        seconds=time.monotonic() - started,
        resumed=resumed,
        kept=tally.kept,
        reencoded=dict(tally.reencoded),
        skipped=tuple(tally.skipped),
    )


_Pool = WorkerPool[int, Payload | Skipped] | ReadAhead[int, Payload | Skipped]


@dataclass(frozen=True)
class _Job:
    """What to convert; ``order`` is the source image at each position of the file."""

    listing: Source
    order: NDArray[np.int64]
    page_size: int
    skip_bad: bool
    overwrite: bool
    settings: dict[str, Scalar]
    progress: bool


@dataclass
class _Tally:
    """What became of the images of this run."""

    kept: int = 0
    reencoded: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)


def _pool(listing: Source, encoding: Encoding, workers: int) -> _Pool:
    """Processes, since encoding holds the GIL; where most bytes are kept no process is needed."""
    encode = Encode(listing, encoding)
    jpegs = sum(path.lower().endswith(_JPEG_NAMES) for path in listing.paths)
    if encoding.copy and jpegs > _MOSTLY * len(listing):
        return ReadAhead(encode.keep, encode, encode.announce, threads=workers)
    return WorkerPool(encode, workers=workers)


def _convert(job: _Job, pool: _Pool, writer: BetonWriter) -> _Tally:
    """Encode, write and commit everything behind the writer's last position."""
    listing, tally = job.listing, _Tally()
    labels = listing.labels
    try:
        # Again, now that no other process can be about to finish it.
        check_output(writer.path, overwrite=job.overwrite)
    except UsageError:
        writer.discard()
        raise
    first = writer.last_position + 1
    samples = job.order[first:].tolist()
    # About a megabyte of images a message.
    batch = int(np.clip(2**20 // max(1, int(listing.sizes.mean())), 1, MAX_BATCH))
    meter = Meter("prepare", total=len(listing), done=first) if job.progress else None
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
            elif job.skip_bad:
                tally.skipped.append(result)
            else:
                raise _bad_image(listing, result)
            if meter is not None:
                meter.advance(size=int(listing.sizes[sample]))
    if not writer.num_samples:
        writer.discard()
        raise BadDataError(
            f"{listing.root}: no sound image among {len(listing):,}; the first: "
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
        },
    )
    return tally


def _finished(report: PrepareReport, listing: Source, settings: dict[str, Scalar]) -> PrepareReport:
    """The report of a run that had ended before it was resumed.

    Raises:
        UsageError: the file that is there was made otherwise.
    """
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
    return replace(report, num_samples=count, file_bytes=size, resumed=count)


def _shuffled(n: int, seed: int) -> NDArray[np.int64]:
    keys = philox_u64(seed, _SHUFFLE_EPOCH, np.arange(n, dtype=np.uint64), Stream.ORDER)
    return np.argsort(keys, kind="stable").astype(np.int64)


def _libraries() -> str:
    """What the bytes of a JPEG depend on besides the settings."""
    return f"Pillow {features.version('pil')}, libjpeg-turbo {features.version('libjpeg_turbo')}"


def _fitting(result: Payload | Skipped, path: str, page_size: int) -> Payload | Skipped:
    if isinstance(result, Payload) and result.nbytes > page_size:
        reason = f"its {result.nbytes:,} bytes exceed a page of {page_size:,}; give --max-side"
        return Skipped(path, reason)
    return result


def _bad_image(source: Source, bad: Skipped) -> BadDataError:
    path = str(source.root / bad.path)
    return BadDataError(
        f"bad image {path if path.isprintable() else repr(path)}: {bad.reason}; mend or remove it "
        "and begin again, or leave such images out with --resume --on-bad-sample skip"
    )
