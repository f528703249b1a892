"""``fastrot bench loader --what prepare``: converting a folder, beside FFCV and the limits."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from fastrot.benchmarks.common.harness import Countdown, machine_record
from fastrot.benchmarks.compare.report import BenchReport
from fastrot.benchmarks.compare.runner import Entry, contest_cores, hold
from fastrot.benchmarks.loader.converters.job import ConversionJob
from fastrot.benchmarks.loader.data import repeated_folder
from fastrot.data.sources.find import list_source
from fastrot.errors import UsageError

_ENOUGH_IMAGES = 1_000
_ONE_CONVERSION = 1e-3  # seconds: a turn ends after the first

PEERS = ("ffcv", "limit", "file_copy")
"""What ``prepare`` is compared with; ``prepare --copy`` is, with ``file_copy``."""


def bench_prepare(
    source: str | Path,
    *,
    peers: tuple[str, ...] | None = None,
    max_side: int | None = None,
    quality: int = 90,
    workers: int | None = None,
    rounds: int = 5,
    repeat: int | None = None,
    progress: bool = True,
) -> BenchReport:
    """Measure whole conversions: from the call to the finished file, from and to the page cache.

    Args:
        source: class folders, or a folder of images.
        peers: names of ``PEERS``; None: all.
        max_side: longest side of a stored image, in pixels; None: as it is.
        quality: of the JPEGs.
        workers: cores, and processes or threads of each contender; None: all that may be used.
        rounds: conversions by each contender; one more warms up.
        repeat: copies of the source; None: until there are 1,000 images.
        progress: say on standard error how far it is.

    Raises:
        UsageError: an argument is wrong.
        BadDataError: the source is no folder of images.
        ContenderError: our own conversion failed.
    """
    cores, names = contest_cores(workers), PEERS if peers is None else peers
    for name in names:
        if name not in PEERS:
            raise UsageError(f"--peers: {name!r} is not known; known: {', '.join(PEERS)}")
    if rounds < 1 or (repeat is not None and repeat < 1):
        raise UsageError(f"--rounds={rounds} and --repeat={repeat} must be at least 1")
    if not 1 <= quality <= 100 or (max_side is not None and max_side < 1):
        raise UsageError(f"--quality={quality} must be from 1 to 100, --max-side at least 1")
    images = len(list_source(source, kind="folder"))
    times = repeat or max(1, -(-_ENOUGH_IMAGES // images))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastrot-bench-")))
        folder = Path(source)
        if times > 1:
            folder = repeated_folder(folder, times, scratch / "repeated")
        job = ConversionJob(
            source=os.path.abspath(folder),
            out=str(scratch / "out.beton"),
            max_side=max_side,
            quality=quality,
            workers=len(cores),
        )
        num_bytes = sum(path.stat().st_size for path in job.files)
        contenders, compared, missing = _contenders(job, names)
        console = Console(stderr=True) if progress else None
        contest = hold(
            contenders,
            cores=cores,
            starts=1,
            rounds=rounds,
            seconds=_ONE_CONVERSION,
            countdown=Countdown(len(contenders) * (1 + rounds), console=console),
        )
    contest.left_out.update(missing)
    return BenchReport(
        bench="prepare",
        subject="prepare",
        compared=compared,
        contest=contest,
        bytes_an_image=num_bytes / (images * times),
        settings={
            "max_side": max_side,
            "quality": quality,
            "workers": len(cores),
            "rounds": rounds,
        },
        data={
            "name": folder.name if times == 1 else Path(source).name,
            "images": images * times,
            "repeat": times,
            "bytes": num_bytes,
        },
        record=machine_record(),
    )


def _contenders(
    job: ConversionJob, names: tuple[str, ...]
) -> tuple[list[Entry], dict[str, str], dict[str, str]]:
    """Entries, whom each peer is compared with, and why some peers are missing."""
    found = [_entry("prepare", "own", job)]
    compared: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if name == "ffcv" and find_spec("ffcv") is None:
            missing[name] = "the package ffcv is not installed"
            continue
        if name == "file_copy":
            found.append(_entry("prepare --copy", "own", replace(job, copy=True)))
        compared[name] = "prepare --copy" if name == "file_copy" else "prepare"
        found.append(_entry(name, name, job))
    return found, compared, missing


def _entry(name: str, module: str, job: ConversionJob) -> Entry:
    return Entry(name, f"fastrot.benchmarks.loader.converters.{module}", asdict(job))
