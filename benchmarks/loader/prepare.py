"""``fastrot bench loader --what prepare``: compares conversion of a folder with FFCV and limits."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from fastrot.benchmarks.common.harness import Countdown, machine_record
from fastrot.benchmarks.compare.report import ComparisonReport
from fastrot.benchmarks.compare.runner import Competitor, competitor_cores, run_comparison
from fastrot.benchmarks.loader.converters.job import ConversionJob
from fastrot.benchmarks.loader.data import repeated_folder
from fastrot.data.sources.find import list_source
from fastrot.errors import UsageError

_ENOUGH_IMAGES = 1_000
_ONE_CONVERSION = 1e-3  # seconds: a round ends after the first conversion

BASELINES = ("ffcv", "limit", "file_copy")
"""Baselines of ``prepare``, except ``file_copy``, which is the baseline of ``prepare --copy``."""


@dataclass(frozen=True)
class PrepareBenchRequest:
    """Options of ``fastrot bench loader --what prepare``.

    Attributes:
        source: class folders, or a folder of images.
        baselines: names in ``BASELINES``; None: all.
        max_side: longest side of a stored image, in pixels; None: unchanged.
        quality: quality of the JPEGs, 1 to 100.
        workers: cores, and processes or threads of each competitor; None: all usable cores.
        rounds: conversions by each competitor, after one more as a warm-up.
        repeat: copies of the source; None: enough for 1,000 images.
        progress: report progress on standard error.

    Raises:
        UsageError: a value is wrong.
    """

    source: Path
    baselines: tuple[str, ...] | None = None
    max_side: int | None = None
    quality: int = 90
    workers: int | None = None
    rounds: int = 5
    repeat: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name in self.baselines or ():
            if name not in BASELINES:
                raise UsageError(f"--peers: {name!r} is not known; known: {', '.join(BASELINES)}")
        if self.rounds < 1 or (self.repeat is not None and self.repeat < 1):
            raise UsageError(
                f"--rounds={self.rounds} and --repeat={self.repeat} must be at least 1"
            )
        if not 1 <= self.quality <= 100 or (self.max_side is not None and self.max_side < 1):
            raise UsageError(
                f"--quality={self.quality} must be from 1 to 100, --max-side at least 1"
            )


def run_prepare(request: PrepareBenchRequest) -> ComparisonReport:
    """Measure whole conversions, from the call to the finished file; data is in the page cache.

    Raises:
        UsageError: there are fewer cores than workers.
        BadDataError: the source is not a folder of images.
        CompetitorError: fastrot's own conversion failed.
    """
    cores = competitor_cores(request.workers)
    names = BASELINES if request.baselines is None else request.baselines
    images = len(list_source(request.source, kind="folder"))
    times = request.repeat or max(1, -(-_ENOUGH_IMAGES // images))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastrot-bench-")))
        folder = request.source
        if times > 1:
            folder = repeated_folder(folder, times, scratch / "repeated")
        job = ConversionJob(
            source=os.path.abspath(folder),
            out=str(scratch / "out.beton"),
            max_side=request.max_side,
            quality=request.quality,
            workers=len(cores),
        )
        num_bytes = sum(path.stat().st_size for path in job.files)
        competitors, compared, missing = _competitors(job, names)
        console = Console(stderr=True) if request.progress else None
        results = run_comparison(
            competitors,
            cores=cores,
            starts=1,
            rounds=request.rounds,
            seconds=_ONE_CONVERSION,
            countdown=Countdown(len(competitors) * (1 + request.rounds), console=console),
        )
    results.left_out.update(missing)
    return ComparisonReport(
        bench="prepare",
        subject="prepare",
        compared=compared,
        results=results,
        bytes_an_image=num_bytes / (images * times),
        settings={
            "max_side": request.max_side,
            "quality": request.quality,
            "workers": len(cores),
            "rounds": request.rounds,
        },
        data={
            "name": request.source.name,
            "images": images * times,
            "repeat": times,
            "bytes": num_bytes,
        },
        record=machine_record(),
    )


def _competitors(
    job: ConversionJob, names: tuple[str, ...]
) -> tuple[list[Competitor], dict[str, str], dict[str, str]]:
    """Return competitors, what each baseline is compared with, and why some are missing."""
    found = [_competitor("prepare", "own", job)]
    compared: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if name == "ffcv" and find_spec("ffcv") is None:
            missing[name] = "the package ffcv is not installed"
            continue
        if name == "file_copy":
            found.append(_competitor("prepare --copy", "own", replace(job, copy=True)))
        compared[name] = "prepare --copy" if name == "file_copy" else "prepare"
        found.append(_competitor(name, name, job))
    return found, compared, missing


def _competitor(name: str, module: str, job: ConversionJob) -> Competitor:
    return Competitor(name, f"fastrot.benchmarks.loader.converters.{module}", asdict(job))
