"""``fastrot bench kernels``: compares fastrot's kernels with torch, its compiler and apex.

Every operation is measured at its shapes in ResNet-50. A time means little on its own, so the
baselines and a copy of as many bytes are timed in the same rounds. It also means little if results
differ, so they are first compared with those in float64.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from fastrot.benchmarks.common.harness import (
    Countdown,
    SavedReport,
    key_fields,
    machine_record,
    ratios,
    rotated,
    spread,
)
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
from fastrot.errors import FastrotError, UsageError

_BASELINES = NAMES[1:]
_FLUSH = {"cuda": 2**28, "cpu": 2**25}
_SAID_EVERY = 2.0  # seconds
_OF_SUMS = 2e-5  # relative error of a long sum in float32


class DisagreementError(FastrotError):
    """An implementation gives a different result, so its time would mean nothing (70)."""


@dataclass
class ImplementationTimes:
    """One implementation of one case.

    Attributes:
        name: name of the implementation.
        worst: largest difference from the float64 result.
        mean: mean difference.
        seconds: median of the runs of each round.
    """

    name: str
    worst: float
    mean: float
    seconds: list[float] = field(default_factory=list)


@dataclass
class CaseTimes:
    """Times of one case.

    Attributes:
        case: the case.
        copy: seconds of a copy in each round.
        copy_bytes: bytes that the copy moves.
        points: all implementations that ran, the subject first.
        left_out: the others, and why.
    """

    case: Case
    copy: list[float]
    copy_bytes: int
    points: list[ImplementationTimes]
    left_out: dict[str, str]

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
class KernelsReport(SavedReport):
    """Results of the benchmark.

    Attributes:
        measured: results per case.
        settings: settings of the benchmark.
        record: the machine, the versions, the command.
    """

    measured: Sequence[CaseTimes]
    settings: Mapping[str, Any]
    record: Mapping[str, Any]
    exit_code: int = field(default=0, init=False)

    def points(self) -> list[dict[str, Any]]:
        """Return the points of all cases."""
        return [each.point(point) for each in self.measured for point in each.points]

    def to_json(self) -> dict[str, Any]:
        """Return one object of plain values."""
        return {
            "bench": "kernels",
            "points": self.points(),
            "copies": [
                {"op": each.case.name, "shape": list(each.case.shape), "bytes": each.copy_bytes,
                 "microseconds": spread([1e6 * s for s in each.copy]).to_json()}
                for each in self.measured
            ],
            "left_out": [
                {"op": each.case.name, "shape": list(each.case.shape), **each.left_out}
                for each in self.measured
                if each.left_out
            ],
            "settings": dict(self.settings),
            "record": dict(self.record),
        }  # fmt: skip

    def records(self) -> list[dict[str, Any]]:
        """Return one self-contained object per point, for a results file."""
        about = key_fields(self.record)
        return [
            {"bench": "kernels", **point, **about, "settings": dict(self.settings),
             "record": dict(self.record)}
            for point in self.points()
        ]  # fmt: skip

    def show(self, console: Console) -> None:
        """Print the report for people, within 80 columns: one table per operation."""
        line = "  ".join(f"{key} {value}" for key, value in self.settings.items())
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print("medians of the rounds; GB/s of what an operation must move", highlight=False)
        for op in dict.fromkeys(each.case.name for each in self.measured):
            console.print(_table(op, [each for each in self.measured if each.case.name == op]))
        reasons = {(name, why) for each in self.measured for name, why in each.left_out.items()}
        for name, why in sorted(reasons):
            console.print(f"left out: {name}: {why}", markup=False, highlight=False)


@dataclass(frozen=True)
class KernelsBenchRequest:
    """Options of ``fastrot bench kernels``.

    Attributes:
        ops: keys of ``cases.OPS``; None: all.
        resolution: side of the images, in pixels.
        batch: images before rotation.
        dtype: float16, bfloat16 or float32.
        device: auto, cpu or cuda.
        baselines: names of ``implementations.NAMES`` except fastrot's own; None: all.
        rounds: number of rounds; each measures all implementations, in a different order.
        runs: runs of each implementation per round; their median counts.
        progress: report progress on standard error.

    Raises:
        UsageError: a value is wrong.
    """

    ops: tuple[str, ...] | None = None
    resolution: int = 224
    batch: int = 64
    dtype: str = "bfloat16"
    device: str = "auto"
    baselines: tuple[str, ...] | None = None
    rounds: int = 5
    runs: int = 20
    progress: bool = True

    def __post_init__(self) -> None:
        for name, number in (("rounds", self.rounds), ("runs", self.runs)):
            if number < 1:
                raise UsageError(f"--{name}={number} must be at least 1")
        if unknown := set(self.baselines or ()) - set(_BASELINES):
            raise UsageError(
                f"peers {sorted(unknown)} are not known; known: {', '.join(_BASELINES)}"
            )


def run_kernels(request: KernelsBenchRequest) -> KernelsReport:
    """Measure operations at the shapes of ResNet-50, one after another.

    Raises:
        UsageError: an operation, a size or the device is not available.
        DisagreementError: a result differs from that in float64.
    """
    device = request.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in _FLUSH or (device == "cuda" and not torch.cuda.is_available()):
        raise UsageError(f"--device={device} cannot be used here; use cpu, or cuda with a GPU")
    where = torch.device(device)
    wanted = cases(
        request.ops or tuple(OPS),
        resolution=request.resolution,
        batch=request.batch,
        dtype=request.dtype,
    )
    console = Console(stderr=True) if request.progress else None
    countdown = Countdown(len(wanted) * request.rounds, console=console)
    clock = Clock(where, flush=_FLUSH[where.type])
    return KernelsReport(
        measured=[_measure(case, request, clock, where, countdown) for case in wanted],
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
    """Compare a result with float64's: on average they may differ by at most a rounding."""
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
    table = Table(title=op, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    heads = ("shape", "", "us", "of rounds", "GB/s", "of copy", "x ours", "mean diff.")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number > 1 else "left", no_wrap=True)
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
