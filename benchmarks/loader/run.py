"""``fastrot bench loader``: compares loaders on the same file, with the same crops and cores."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console

from fastrot.benchmarks.common.harness import Countdown, machine_record
from fastrot.benchmarks.compare.report import ComparisonReport
from fastrot.benchmarks.compare.runner import competitor_cores, run_comparison
from fastrot.benchmarks.loader.baselines import DEFAULT_BASELINES, find_competitors
from fastrot.benchmarks.loader.data import prepare_data
from fastrot.benchmarks.loader.prepare import PrepareBenchRequest, run_prepare
from fastrot.benchmarks.loader.readers.job import LoaderJob
from fastrot.errors import UsageError

if TYPE_CHECKING:
    from fastrot.data.sampling.crops import CropKind

_WHAT = ("load", "prepare")
_CROPS = ("random_resized", "center", "whole")


@dataclass(frozen=True)
class LoaderBenchRequest:
    """Options of ``fastrot bench loader``.

    Attributes:
        data: a .beton file or a folder of images; to convert: class folders, or a folder of images.
        what: ``load``: read batches. ``prepare``: convert (``loader.prepare``); only ``baselines``,
            ``max_side``, ``quality``, ``workers``, ``rounds`` and ``repeat`` are then used.
        baselines: names from ``loader.baselines``; None: ffcv, dali, torchvision.
        loader: which of fastrot's loaders is the subject.
        size: S, pixels.
        batch: N.
        workers: cores, and threads or processes of each competitor; None: all usable cores.
        rounds: number of rounds; each measures every competitor once.
        seconds: minimum length of one competitor's measurement in a round.
        starts: fresh processes per competitor, to measure the time to the first batch.
        crop: ``random_resized``, ``center`` or ``whole``.
        exact: the native loader and the decode limit decode at full resolution.
        checksums: fastrot's loaders compare the manifest's checksums.
        repeat: copies of the data to read; None: enough for 3,000 samples (to convert: 1,000
            images).
        max_side: longest side of a converted image, in pixels; None: unchanged.
        quality: quality of the converted JPEGs, 1 to 100.
        progress: report progress on standard error.

    Raises:
        UsageError: a value is wrong.
    """

    data: Path
    what: str = "load"
    baselines: tuple[str, ...] | None = None
    loader: str = "native"
    size: int = 224
    batch: int = 128
    workers: int | None = None
    rounds: int = 5
    seconds: float = 3.0
    starts: int = 3
    crop: str = "random_resized"
    exact: bool = False
    checksums: bool = True
    repeat: int | None = None
    max_side: int | None = None
    quality: int = 90
    progress: bool = True

    def __post_init__(self) -> None:
        if self.what not in _WHAT:
            raise UsageError(f"--what={self.what!r} is not known; choose {' or '.join(_WHAT)}")
        if self.what == "prepare":
            return  # PrepareBenchRequest checks the options that are used then
        for flag, value, least in (
            ("--size", self.size, 8),
            ("--batch", self.batch, 1),
            ("--rounds", self.rounds, 1),
            ("--starts", self.starts, 1),
            ("--repeat", 1 if self.repeat is None else self.repeat, 1),
        ):
            if value < least:
                raise UsageError(f"{flag}={value} must be at least {least}")
        if not 0 < self.seconds <= 600:
            raise UsageError(f"--seconds={self.seconds} must be more than 0 and at most 600")
        if self.crop not in _CROPS:
            raise UsageError(f"--crop={self.crop!r} is not known; choose {', '.join(_CROPS)}")


def run_loader(request: LoaderBenchRequest) -> ComparisonReport:
    """Measure a loader, or a conversion, and its baselines in one run.

    Every competitor has its own process on the same cores, and is measured once in every round, in
    a different order each time. Batches are uint8 (N, S, S, 3), not normalised, on the host, or on
    the GPU if there is one. Nothing else computes meanwhile: torch has one thread.

    Raises:
        UsageError: the request does not fit the data or the machine.
        BadDataError: the data is damaged.
        CompetitorError: the subject failed.
    """
    if request.what == "prepare":
        return run_prepare(
            PrepareBenchRequest(
                source=request.data,
                baselines=request.baselines,
                max_side=request.max_side,
                quality=request.quality,
                workers=request.workers,
                rounds=request.rounds,
                repeat=request.repeat,
                progress=request.progress,
            )
        )
    cores = competitor_cores(request.workers)
    names = DEFAULT_BASELINES if request.baselines is None else request.baselines
    import torch

    gpu = torch.cuda.is_available()
    job = LoaderJob(
        data=os.path.abspath(request.data),
        loader=request.loader,
        size=request.size,
        batch=request.batch,
        workers=len(cores),
        crop=cast("CropKind", request.crop),
        checksums=request.checksums,
        exact=request.exact,
        device="cuda" if gpu else "cpu",
    )
    find_competitors(job, names, gpu=gpu)  # refuses wrong names before the data is read
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastrot-bench-")))
        data = prepare_data(request.data, repeat=request.repeat, scratch=scratch)
        if data.samples < request.batch:
            raise UsageError(
                f"--batch={request.batch} exceeds the {data.samples} samples; lower it"
            )
        job = dataclasses.replace(job, data=os.path.abspath(data.path))
        competitors, missing = find_competitors(job, names, gpu=gpu)
        console = Console(stderr=True) if request.progress else None
        results = run_comparison(
            competitors,
            cores=cores,
            starts=request.starts,
            rounds=request.rounds,
            seconds=request.seconds,
            countdown=Countdown(
                len(competitors) * (request.starts + request.rounds), console=console
            ),
        )
    results.left_out.update(missing)
    subject, *others = (competitor.name for competitor in competitors)
    return ComparisonReport(
        bench="loader",
        subject=subject,
        compared=dict.fromkeys(others, subject),
        results=results,
        bytes_an_image=data.num_bytes / data.samples,
        settings={
            "size": request.size,
            "batch": request.batch,
            "workers": len(cores),
            "crop": request.crop,
            "exact": request.exact,
            "checksums": request.checksums,
            "device": job.device,
            "rounds": request.rounds,
            "seconds": request.seconds,
            "starts": request.starts,
        },
        data=data.to_json(),
        record=machine_record(),
    )
