"""``fastrot bench loader``: our loader beside its peers, on the same file, crops and cores."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console

from fastrot.benchmarks.common.harness import Countdown, machine_record
from fastrot.benchmarks.compare.report import BenchReport
from fastrot.benchmarks.compare.runner import contest_cores, hold
from fastrot.benchmarks.loader.baselines import DEFAULT_PEERS, entries
from fastrot.benchmarks.loader.data import prepare_data
from fastrot.benchmarks.loader.readers.job import LoaderJob
from fastrot.errors import UsageError

if TYPE_CHECKING:
    from fastrot.data.sampling.crops import CropKind

_CROPS = ("random_resized", "center", "whole")


def bench_loader(
    data: str | Path,
    *,
    peers: tuple[str, ...] | None = None,
    loader: str = "native",
    size: int = 224,
    batch: int = 128,
    workers: int | None = None,
    rounds: int = 5,
    seconds: float = 3.0,
    starts: int = 3,
    crop: str = "random_resized",
    exact: bool = False,
    checksums: bool = True,
    repeat: int | None = None,
    progress: bool = True,
) -> BenchReport:
    """Measure a loader and its peers in one run.

    Every contender has a process of its own on the same cores, and its turns in every round, in
    another order each time. Batches are uint8 (N, S, S, 3) on the host, or on the GPU if there
    is one; nobody normalises. Nothing else computes meanwhile: torch has one thread.

    Args:
        data: a .beton file or a folder of images.
        peers: names from ``loader_contenders``; None: ffcv, dali, torchvision.
        loader: which of our loaders is the subject.
        size: S, pixels.
        batch: N.
        workers: cores, and threads or processes of each contender; None: all that may be used.
        rounds: turns of each contender.
        seconds: least length of a turn.
        starts: fresh processes of each, for the time to the first batch.
        crop: ``random_resized``, ``center`` or ``whole``.
        exact: our native loader and the decode limit decode at full resolution.
        checksums: our loaders compare the manifest's checksums.
        repeat: copies of the data that are read; None: until there are 3,000 samples.
        progress: say on standard error how far it is.

    Raises:
        UsageError: an argument is wrong.
        BadDataError: the data is damaged.
        ContenderError: the subject failed.
    """
    cores, peers = contest_cores(workers), DEFAULT_PEERS if peers is None else peers
    for flag, value, least in (
        ("--size", size, 8),
        ("--batch", batch, 1),
        ("--rounds", rounds, 1),
        ("--starts", starts, 1),
        ("--repeat", 1 if repeat is None else repeat, 1),
    ):
        if value < least:
            raise UsageError(f"{flag}={value} must be at least {least}")
    if not 0 < seconds <= 600:
        raise UsageError(f"--seconds={seconds} must be more than 0 and at most 600")
    if crop not in _CROPS:
        raise UsageError(f"--crop={crop!r} is not known; choose {', '.join(_CROPS)}")
    import torch

    gpu = torch.cuda.is_available()
    job = LoaderJob(
        data=os.path.abspath(data),
        loader=loader,
        size=size,
        batch=batch,
        workers=len(cores),
        crop=cast("CropKind", crop),
        checksums=checksums,
        exact=exact,
        device="cuda" if gpu else "cpu",
    )
    entries(job, peers, gpu=gpu)  # wrong names are refused before the data is read
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastrot-bench-")))
        described = prepare_data(Path(data), repeat=repeat, scratch=scratch)
        if described.samples < batch:
            raise UsageError(f"--batch={batch} exceeds the {described.samples} samples; lower it")
        contenders, missing = entries(
            dataclasses.replace(job, data=os.path.abspath(described.path)), peers, gpu=gpu
        )
        console = Console(stderr=True) if progress else None
        contest = hold(
            contenders,
            cores=cores,
            starts=starts,
            rounds=rounds,
            seconds=seconds,
            countdown=Countdown(len(contenders) * (starts + rounds), console=console),
        )
    contest.left_out.update(missing)
    return BenchReport(
        bench="loader",
        subject=contenders[0].name,
        compared={entry.name: contenders[0].name for entry in contenders[1:]},
        contest=contest,
        bytes_an_image=described.num_bytes / described.samples,
        settings={
            "size": size,
            "batch": batch,
            "workers": len(cores),
            "crop": crop,
            "exact": exact,
            "checksums": checksums,
            "device": job.device,
            "rounds": rounds,
            "seconds": seconds,
            "starts": starts,
        },
        data=described.to_json(),
        record=machine_record(),
    )
