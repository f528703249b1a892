"""Images/s of loading for detection, beside torchvision's reference loader, alternating in one run.

    python -m fastrot.benchmarks.loader.detection --data coco [--split train] [--side 800]

prints a table; ``--append FILE`` writes a record of every competitor. ``readers/detection.py`` says
what each of them does.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from fastrot.benchmarks.common.harness import Countdown, machine_record, published_command
from fastrot.benchmarks.compare.report import ComparisonReport
from fastrot.benchmarks.compare.runner import Competitor, competitor_cores, run_comparison
from fastrot.benchmarks.loader.readers.detection import DetectionJob
from fastrot.data.annotations.coco_instances import open_coco

_PROGRAM = "python -m fastrot.benchmarks.loader.detection"
_MODULE = "fastrot.benchmarks.loader.readers.detection"
_SUBJECT, _BASELINES = "fastrot", ("torchvision", "torchvision-resized")


def compare(
    job: DetectionJob, *, rounds: int, seconds: float, console: Console | None = None
) -> ComparisonReport:
    """Measure all competitors on the same cores, each once in every round.

    Args:
        job: the images, and how they are resized; with ``workers`` cores.
        rounds: number of rounds.
        seconds: minimum length of one competitor's measurement in a round.
        console: where progress is reported; None: nowhere.

    Raises:
        UsageError: there are fewer cores, or the data is not in COCO's layout.
        BadDataError: the data is damaged.
        CompetitorError: our loader failed.
    """
    dataset = open_coco(job.data, job.split, partial=True)
    cores = competitor_cores(job.workers)
    names = (_SUBJECT, *_BASELINES)
    found = [Competitor(name, _MODULE, asdict(replace(job, kind=name))) for name in names]
    results = run_comparison(
        found, cores=cores, starts=1, rounds=rounds, seconds=seconds,
        countdown=Countdown(len(found) * (1 + rounds), console=console),
    )  # fmt: skip
    settings = {name: getattr(job, name) for name in ("side", "longest_side", "batch", "workers")}
    samples, size = len(dataset), dataset.stored_bytes
    return ComparisonReport(
        bench="detection loading",
        subject=_SUBJECT,
        compared=dict.fromkeys(_BASELINES, _SUBJECT),
        results=results,
        bytes_an_image=size / samples,
        settings=settings | {"rounds": rounds, "seconds": seconds},
        data={"name": Path(job.data).name, "samples": samples, "bytes": size},
        left_out=results.left_out,
        record=machine_record() | {"command": published_command(_PROGRAM)},
    )


def main() -> None:
    """Compare, print the table, and append the records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder in COCO's layout")
    parser.add_argument("--split", default="train")
    parser.add_argument("--side", type=int, default=800)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--append", type=Path)
    given = parser.parse_args()
    job = DetectionJob(
        data=os.path.abspath(given.data),
        split=given.split,
        side=given.side,
        batch=given.batch,
        workers=given.workers or len(competitor_cores(None)),
    )
    console = Console(stderr=True)
    report = compare(job, rounds=given.rounds, seconds=given.seconds, console=console)
    report.save(None, given.append)
    report.show(Console())


if __name__ == "__main__":
    main()
