"""``fastrot bench loader``: compares loaders, or converters, on the same data and cores."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from fastrot.benchmarks.common.harness import Countdown, machine_record
from fastrot.benchmarks.compare.report import ComparisonReport
from fastrot.benchmarks.compare.runner import Competitor, competitor_cores, run_comparison
from fastrot.benchmarks.loader.baselines import (
    CONVERTER_BASELINES,
    DEFAULT_BASELINES,
    find_competitors,
    find_converters,
)
from fastrot.benchmarks.loader.converters import ConversionJob
from fastrot.benchmarks.loader.data import prepare_data, repeated_folder
from fastrot.benchmarks.loader.readers.job import LoaderJob
from fastrot.data.sources.find import list_source
from fastrot.errors import UsageError

if TYPE_CHECKING:
    from fastrot.data.sampling.crops import CropKind

_WHAT = ("load", "prepare")
_CROPS = ("random_resized", "center", "whole")
_ENOUGH_IMAGES = 1_000
_ONE_CONVERSION = 1e-3  # seconds: a round ends after the first conversion


@dataclass(frozen=True)
class LoaderBenchRequest:
    """Options of ``fastrot bench loader``.

    Raises:
        UsageError: a value is wrong.
    """

    data: Path
    """A .beton file or a folder of images; to convert: class folders, or a folder of images."""
    what: str = "load"
    """``load``: read batches. ``prepare``: convert; only ``baselines``, ``max_side``, ``quality``,
    ``workers``, ``rounds`` and ``repeat`` are then used."""
    baselines: tuple[str, ...] | None = None
    """Names from ``loader.baselines``; None: ffcv, dali, torchvision, or all of
    ``CONVERTER_BASELINES``."""
    loader: str = "native"  # which of fastrot's loaders is the subject
    size: int = 224  # S, pixels
    batch: int = 128  # N
    workers: int | None = None
    """Cores, and threads or processes of each competitor; None: all usable cores."""
    rounds: int = 5  # number of rounds; each measures every competitor once
    seconds: float = 3.0  # minimum length of one competitor's measurement in a round
    starts: int = 3  # fresh processes per competitor, to measure the time to the first batch
    crop: str = "random_resized"  # ``random_resized``, ``center`` or ``whole``
    exact: bool = False  # the native loader and the decode limit decode at full resolution
    checksums: bool = True  # fastrot's loaders compare the manifest's checksums
    repeat: int | None = None
    """Copies of the data to read; None: enough for 3,000 samples (to convert: 1,000 images)."""
    max_side: int | None = None  # longest side of a converted image, in pixels; None: unchanged
    quality: int = 90  # quality of the converted JPEGs, 1 to 100
    progress: bool = True  # report progress on standard error

    def __post_init__(self) -> None:
        if self.what not in _WHAT:
            raise UsageError(f"unknown --what={self.what!r}; choose {' or '.join(_WHAT)}")
        if self.what == "prepare" and (
            wrong := set(self.baselines or ()) - set(CONVERTER_BASELINES)
        ):
            raise UsageError(
                f"--peers: unknown name {min(wrong)!r}; choose {', '.join(CONVERTER_BASELINES)}"
            )
        for flag, value, least in (
            ("--size", self.size, 8),
            ("--batch", self.batch, 1),
            ("--rounds", self.rounds, 1),
            ("--starts", self.starts, 1),
            ("--repeat", self.repeat, 1),
            ("--max-side", self.max_side, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{flag}={value} must be at least {least}")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"--quality={self.quality} must be from 1 to 100")
        if not 0 < self.seconds <= 600:
            raise UsageError(f"--seconds={self.seconds} must be more than 0 and at most 600")
        if self.crop not in _CROPS:
            raise UsageError(f"unknown --crop={self.crop!r}; choose {', '.join(_CROPS)}")


def run_loader(request: LoaderBenchRequest) -> ComparisonReport:
    """Measure a loader, or a conversion, and its baselines in one run.

    Every competitor has its own process on the same cores, and is measured once in every round, in
    a different order each time. Nothing else computes meanwhile: torch has one thread.

    Raises:
        UsageError: the request does not fit the data or the machine.
        BadDataError: the data is damaged, or there are no images to convert.
        CompetitorError: the subject failed.
    """
    cores = competitor_cores(request.workers)
    with tempfile.TemporaryDirectory(prefix="fastrot-bench-") as scratch:
        measure = _load if request.what == "load" else _convert
        return measure(request, cores, Path(scratch))


def _load(request: LoaderBenchRequest, cores: Sequence[int], scratch: Path) -> ComparisonReport:
    """Measure loading: uint8 (N, S, S, 3), not normalised, on the host or, if any, on the GPU."""
    import torch

    gpu = torch.cuda.is_available()
    names = DEFAULT_BASELINES if request.baselines is None else request.baselines
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
    data = prepare_data(request.data, repeat=request.repeat, scratch=scratch)
    if data.samples < request.batch:
        raise UsageError(f"--batch={request.batch} exceeds the {data.samples} samples; lower it")
    job = dataclasses.replace(job, data=os.path.abspath(data.path))
    competitors, missing = find_competitors(job, names, gpu=gpu)
    subject, *others = (competitor.name for competitor in competitors)
    said = ("size", "batch", "crop", "exact", "checksums", "rounds", "seconds", "starts")
    settings = {name: getattr(request, name) for name in said}
    settings |= {"workers": len(cores), "device": job.device}
    return _compare(
        request,
        cores,
        competitors,
        missing,
        dict.fromkeys(others, subject),
        bytes_an_image=data.num_bytes / data.samples,
        settings=settings,
        data=data.to_json(),
    )


def _convert(request: LoaderBenchRequest, cores: Sequence[int], scratch: Path) -> ComparisonReport:
    """Measure whole conversions, from the call to the finished file; data is in the page cache."""
    images = len(list_source(request.data, kind="folder"))
    times = request.repeat or max(1, -(-_ENOUGH_IMAGES // images))
    folder = request.data
    if times > 1:
        folder = repeated_folder(folder, times, scratch / "repeated")
    job = ConversionJob(
        source=os.path.abspath(folder),
        out=str(scratch / "out.beton"),
        max_side=request.max_side,
        quality=request.quality,
        workers=len(cores),
    )
    names = CONVERTER_BASELINES if request.baselines is None else request.baselines
    competitors, missing, compared = find_converters(job, names)
    num_bytes = sum(path.stat().st_size for path in job.files)
    settings = {
        "max_side": request.max_side,
        "quality": request.quality,
        "workers": len(cores),
        "rounds": request.rounds,
    }
    return _compare(
        dataclasses.replace(request, starts=1, seconds=_ONE_CONVERSION),
        cores,
        competitors,
        missing,
        compared,
        bytes_an_image=num_bytes / (images * times),
        settings=settings,
        data={
            "name": request.data.name,
            "images": images * times,
            "repeat": times,
            "bytes": num_bytes,
        },
    )


def _compare(
    request: LoaderBenchRequest,
    cores: Sequence[int],
    competitors: Sequence[Competitor],
    missing: dict[str, str],
    compared: Mapping[str, str],
    **about: Any,
) -> ComparisonReport:
    """Measure the competitors and return the report."""
    steps = len(competitors) * (request.starts + request.rounds)
    console = Console(stderr=True) if request.progress else None
    results = run_comparison(
        competitors,
        cores=cores,
        starts=request.starts,
        rounds=request.rounds,
        seconds=request.seconds,
        countdown=Countdown(steps, console=console),
    )
    return ComparisonReport(
        bench="loader" if request.what == "load" else "prepare",
        subject=competitors[0].name,
        compared=compared,
        results=results,
        left_out=results.left_out | missing,
        record=machine_record(),
        **about,
    )
