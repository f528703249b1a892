"""``fastrot bench kernels``: compares fastrot's kernels with torch, its compiler and apex.

Every operation is measured at its shapes in ResNet-50. A time means little on its own, so the
baselines and a copy of as many bytes are timed in the same rounds. It also means little if results
differ, so they are first compared with those in float64.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fastrot.benchmarks.common.harness import (
    Countdown,
    DisagreementError,
    machine_record,
    ratios,
    rotated,
    spread,
)
from fastrot.benchmarks.common.machine_speed import usable_device
from fastrot.benchmarks.common.points_report import PointsReport, empty_table, say
from fastrot.benchmarks.kernels.cases import OPS, Case, cases
from fastrot.benchmarks.kernels.clock import Clock, copying
from fastrot.benchmarks.kernels.implementations import (
    NAMES,
    Implementation,
    implementation,
    missing,
)
from fastrot.benchmarks.kernels.inputs import exact as exact_result
from fastrot.benchmarks.kernels.inputs import make as make_inputs
from fastrot.errors import UsageError

_BASELINES = NAMES[1:]
_FLUSH = {"cuda": 2**28, "cpu": 2**25}
_SAID_EVERY = 2.0  # seconds
_OF_SUMS = 2e-5  # relative error of a long sum in float32


@dataclass
class ImplementationTimes:
    """One implementation of one case."""

    name: str  # name of the implementation
    worst: float  # largest difference from the float64 result
    mean: float  # mean difference
    seconds: list[float] = field(default_factory=list)  # median of the runs of each round


@dataclass
class CaseTimes:
    """Times of one case."""

    case: Case  # the case
    copy: list[float]  # time of a copy in each round, in seconds
    copy_bytes: int  # bytes that the copy moves
    points: list[ImplementationTimes]  # all implementations that ran, the subject first
    left_out: dict[str, str]  # the others, and why

    def point(self, each: ImplementationTimes) -> dict[str, Any]:
        """Return plain values for one implementation; shares are taken round by round."""
        moved = self.case.bytes
        rates = [moved / s for s in each.seconds]
        share = ratios(rates, [self.copy_bytes / s for s in self.copy])
        return {
            "op": self.case.name,
            "shape": list(self.case.shape),
            "dtype": str(self.case.dtype).removeprefix("torch."),
            "implementation": each.name,
            "microseconds": spread([1e6 * s for s in each.seconds]).to_json(),
            "bytes": moved,
            "gbytes_per_s": _short(statistics.median(rates) / 1e9),
            "share_of_copy": _short(share.median),
            "times_ours": _short(ratios(each.seconds, self.points[0].seconds).median),
            "largest_difference": _short(each.worst),
            "mean_difference": _short(each.mean),
        }


@dataclass(frozen=True)
class KernelsReport(PointsReport):
    """Results of the benchmark: those of each case."""

    bench = "kernels"
    measured: Sequence[CaseTimes]

    def plain_points(self) -> list[dict[str, Any]]:
        """Return the points of all cases."""
        return [each.point(point) for each in self.measured for point in each.points]

    def summary(self) -> dict[str, Any]:
        """Return the copies, and what was left out, by case."""
        about = [({"op": e.case.name, "shape": list(e.case.shape)}, e) for e in self.measured]
        return {
            "copies": [
                {**case, "bytes": each.copy_bytes,
                 "microseconds": spread([1e6 * s for s in each.copy]).to_json()}
                for case, each in about
            ],
            "left_out": [{**case, **each.left_out} for case, each in about if each.left_out],
        }  # fmt: skip

    def show_points(self, console: Console) -> None:
        """Print one table per operation."""
        say(console, "medians of the rounds; GB/s of what an operation must move")
        for op in dict.fromkeys(each.case.name for each in self.measured):
            console.print(_table(op, [each for each in self.measured if each.case.name == op]))


@dataclass(frozen=True)
class KernelsBenchRequest:
    """Options of ``fastrot bench kernels``.

    Raises:
        UsageError: a value is wrong.
    """

    ops: tuple[str, ...] | None = None  # keys of ``cases.OPS``; None: all
    resolution: int = 224  # side of the images, in pixels
    batch: int = 64  # images before rotation
    dtype: str = "bfloat16"  # float16, bfloat16 or float32
    device: str = "auto"  # auto, cpu or cuda
    baselines: tuple[str, ...] | None = None
    """Names of ``implementations.NAMES`` except fastrot's own; None: all."""
    rounds: int = 5  # number of rounds; each measures all implementations, in a different order
    runs: int = 20  # runs of each implementation per round; their median counts
    progress: bool = True  # report progress on standard error

    def __post_init__(self) -> None:
        for name, number in (("rounds", self.rounds), ("runs", self.runs)):
            if number < 1:
                raise UsageError(f"--{name}={number} must be at least 1")
        if unknown := set(self.baselines or ()) - set(_BASELINES):
            raise UsageError(f"unknown peers {sorted(unknown)}; choose {', '.join(_BASELINES)}")


def run_kernels(request: KernelsBenchRequest) -> KernelsReport:
    """Measure operations at the shapes of ResNet-50, one after another.

    Raises:
        UsageError: an operation, a size or the device is not available.
        DisagreementError: a result differs from that in float64.
    """
    where = usable_device(request.device)
    wanted = cases(
        request.ops or tuple(OPS),
        resolution=request.resolution,
        batch=request.batch,
        dtype=request.dtype,
    )
    console = Console(stderr=True) if request.progress else None
    countdown = Countdown(len(wanted) * request.rounds, console=console)
    clock = Clock(where, flush=_FLUSH[where.type])
    measured = [_measure(case, request, clock, where, countdown) for case in wanted]
    return KernelsReport(
        measured=measured,
        left_out={name: why for each in measured for name, why in each.left_out.items()},
        settings={"device": where.type, "resolution": request.resolution, "batch": request.batch,
                  "dtype": request.dtype, "rounds": request.rounds, "runs": request.runs},
        record=machine_record(),
    )  # fmt: skip


def _measure(
    case: Case,
    request: KernelsBenchRequest,
    clock: Clock,
    device: torch.device,
    countdown: Countdown,
) -> CaseTimes:
    baselines = _BASELINES if request.baselines is None else request.baselines
    names = [name for name in NAMES if name == NAMES[0] or name in baselines]
    inputs = make_inputs(case, device)
    left_out = {name: why for name in names if (why := missing(name, case)) is not None}
    expected = exact_result(case, inputs)
    points, implementations = [], {}
    for name in names:
        if name not in left_out:
            implementations[name] = implementation(name, case, inputs)
            points.append(_compared(name, case, implementations[name], expected))
    del expected
    copy, copy_bytes = copying(case.bytes, device)
    everyone: dict[str, Implementation] = {**implementations, "copy": copy}
    seconds: dict[str, list[float]] = {name: [] for name in everyone}
    for each in everyone.values():
        clock.seconds(each)  # warm-up
    for number in range(request.rounds):
        for name in rotated(list(everyone), number):
            times = [clock.seconds(everyone[name]) for _ in range(request.runs)]
            seconds[name].append(statistics.median(times))
        ours = 1e6 * seconds[points[0].name][-1]
        countdown.step(f"{case}: {_digits(ours)} us", every=_SAID_EVERY)
    for point in points:
        point.seconds = seconds[point.name]
    return CaseTimes(case, seconds["copy"], copy_bytes, points, left_out)


def _compared(
    name: str, case: Case, implementation: Implementation, expected: torch.Tensor
) -> ImplementationTimes:
    """Compare a result with float64's; the mean difference may be at most a rounding error."""
    found = implementation.run(implementation.begin())
    if found.shape != expected.shape or found.dtype != case.dtype:
        raise DisagreementError(f"{name}: {case.name} gives {found.dtype} {tuple(found.shape)}")
    apart = (found.detach() - expected).abs_()
    point = ImplementationTimes(name, float(apart.max()), float(apart.mean()))
    # Near ReLU's edge, rounding decides which side a value is on, so only the mean is bounded.
    bound = max(torch.finfo(case.dtype).eps, _OF_SUMS) * max(1.0, float(expected.abs().mean()))
    if not point.mean <= bound:
        raise DisagreementError(
            f"{name}: {case} differs from float64 by {point.mean:.2g} on average, "
            f"more than {bound:.2g}"
        )
    return point


def _table(op: str, cases: Sequence[CaseTimes]) -> Table:
    table = empty_table(op, "shape", "", "us", "of rounds", "GB/s", "of copy", "x ours",
                        "mean diff.", names=2)  # fmt: skip
    for each in cases:
        shape = "x".join(map(str, each.case.shape))
        for point in map(each.point, each.points):
            times = point["microseconds"]
            table.add_row(
                shape,
                point["implementation"],
                _digits(times["median"]),
                f"{_digits(times['low'])}-{_digits(times['high'])}",
                _digits(point["gbytes_per_s"]),
                f"{100 * point['share_of_copy']:.0f} %",
                f"{point['times_ours']:.2f}",
                f"{point['mean_difference']:.1e}",
            )
            shape = ""
    return table


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _digits(value: float) -> str:
    """Format a number with three digits, or as a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
