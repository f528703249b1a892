"""Report of ``fastrot bench train-step``: JSON, records for a results file, and tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from fastrot.benchmarks.common.harness import (
    Spread,
    ratio_fields,
    ratios,
    spread,
)
from fastrot.benchmarks.common.machine_speed import MachineSpeed, percentile
from fastrot.benchmarks.common.points_report import PointsReport, empty_table, say
from fastrot.benchmarks.common.roofline import Bound
from fastrot.benchmarks.train_step.kernel_kinds import KINDS
from fastrot.benchmarks.train_step.time_table import PHASES, TimeTable
from fastrot.benchmarks.train_step.verdict import verdict

INTERRUPTED = "the rest"
"""Key, among those left out, of what Ctrl-C cut off."""

_LOSSES_APART = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2}
_CHANCE = 4.0
"""The mean distance of the first losses from eager's may be at most ``_LOSSES_APART``, or this many
times the effect on eager of rounding the weights. (Gradients of an untrained ResNet-50 are so badly
conditioned that even float32's are 2 % off, so single losses always differ.)"""


@dataclass
class StepPoint:
    """One implementation at one size."""

    step: str  # name of the implementation
    batchnorm: str  # implementation of batch norm
    cuda_graph: bool  # whether the step is one CUDA graph
    resolution: int  # S
    batch: int  # N, source images per step
    views: int  # views per step
    flops: int  # FLOPs per view of a training step
    losses: list[float]  # losses of the first steps
    control: list[float]
    """Losses of one implementation at this size, from weights that differ by a rounding error."""
    memory: int  # peak, in bytes
    measured: Mapping[str, Bound]  # bounds at the measured speeds, by level
    reference: Mapping[str, Bound]  # bounds at the speeds of an H200, by level
    rounds: list[list[float]] = field(
        default_factory=list
    )  # time of every step, in seconds, by round
    together: bool = False  # whether it was timed in rounds with all other implementations
    table: TimeTable | None = None  # where the time goes; None: not profiled

    @property
    def size(self) -> tuple[int, int]:
        """Return the resolution and the batch size."""
        return self.resolution, self.batch

    def rates(self) -> list[float]:
        """Return views/s, by round."""
        return [self.views * len(each) / sum(each) for each in self.rounds]

    @property
    def views_per_second(self) -> float:
        """Return the median rate of the rounds."""
        return spread(self.rates()).median

    @property
    def tflops(self) -> float:
        """Return the rate of arithmetic in convolutions and the linear layer, in TFLOP/s."""
        return self.views_per_second * self.flops / 1e12

    def milliseconds(self, share: float) -> float:
        """Return a percentile of all steps, in milliseconds."""
        return 1e3 * percentile([seconds for each in self.rounds for seconds in each], share)

    def verdict(self) -> str:
        """Return a line on what limits the step."""
        return verdict(self.table, self.milliseconds(0.5) / 1e3, self.views, self.measured)


@dataclass(frozen=True)
class TrainStepReport(PointsReport):
    """Results of the benchmark.

    Attributes:
        points: one per implementation and size.
        speed: speed of the machine.
    """

    bench = "train-step"
    points: Sequence[StepPoint]
    speed: MachineSpeed

    @property
    def exit_code(self) -> int:
        """Return 70 if an implementation trained differently, 130 after Ctrl-C, otherwise 0."""
        least = _LOSSES_APART[self.settings["precision"]]
        if not all(
            self.mean_loss_difference(point) <= max(least, _CHANCE * self.chance(point))
            for point in self.points
        ):  # a comparison with NaN is false
            return 70
        return 130 if INTERRUPTED in self.left_out else 0

    def _same(self, point: StepPoint) -> list[StepPoint]:
        """Return all points of the same size."""
        return [other for other in self.points if other.size == point.size]

    def _first_of(self, point: StepPoint) -> StepPoint:
        """Return the point to compare with: eager at the same size, otherwise the first one."""
        same = self._same(point)
        return next((other for other in same if other.step == "eager"), same[0])

    def loss_difference(self, point: StepPoint) -> float:
        """Return the largest difference from eager's losses, step by step; infinite for NaN."""
        apart = [abs(difference) for difference in self._losses_apart(point)]
        return float("inf") if any(map(math.isnan, apart)) else max(apart)

    def mean_loss_difference(self, point: StepPoint) -> float:
        """Return the mean absolute difference from eager's losses."""
        return statistics.fmean(map(abs, self._losses_apart(point)))

    def chance(self, point: StepPoint) -> float:
        """Return the mean loss difference of eager from itself, started a rounding error apart."""
        first = self._first_of(point)
        pairs = zip(first.control, first.losses, strict=True)
        return statistics.fmean(abs(control - loss) for control, loss in pairs)

    def _losses_apart(self, point: StepPoint) -> list[float]:
        pairs = zip(point.losses, self._first_of(point).losses, strict=True)
        return [ours - theirs for ours, theirs in pairs]

    def ratios(self, point: StepPoint) -> dict[str, Spread]:
        """Return the point's speed-up over every other point of its size, round by round."""
        return {
            other.step: ratios(point.rates(), other.rates())
            for other in self._same(point)
            if other is not point
        }

    def summary(self) -> dict[str, Any]:
        """Return the speed of the machine."""
        return {"measured": self.speed.to_json()}

    def plain_points(self) -> list[dict[str, Any]]:
        """Return one object per point, as in ``benchmarks/results``."""
        shared = {"model": self.settings["model"], **self.summary()}
        return [{**shared, **self._point(point)} for point in self.points]

    def _point(self, point: StepPoint) -> dict[str, Any]:
        rate = point.views_per_second
        return {
            "step": point.step,
            "batchnorm": point.batchnorm,
            "cuda_graph": point.cuda_graph,
            "resolution": point.resolution,
            "batch": point.batch,
            "views": point.views,
            "precision": self.settings["precision"],
            "views_per_s": float(f"{rate:.5g}"),
            "images_per_s": float(f"{rate * point.batch / point.views:.5g}"),
            "rounds": spread(point.rates()).to_json(),
            "together": point.together,
            "step_ms_p50": float(f"{point.milliseconds(0.5):.5g}"),
            "step_ms_p95": float(f"{point.milliseconds(0.95):.5g}"),
            "tflops": float(f"{point.tflops:.5g}"),
            "peak_share": float(f"{1e12 * point.tflops / self.speed.peak:.4g}"),
            "peak_memory_bytes": point.memory,
            "roofline": {
                "measured": _bounds(point.measured, rate),
                "reference": _bounds(point.reference, rate),
            },
            **ratio_fields(self.ratios(point)),
            "losses": [float(f"{loss:.6g}") for loss in point.losses],
            "mean_loss_difference": float(f"{self.mean_loss_difference(point):.3g}"),
            "mean_loss_difference_by_chance": float(f"{self.chance(point):.3g}"),
            "loss_difference": float(f"{self.loss_difference(point):.3g}"),
            "verdict": point.verdict(),
            "attributed": None if point.table is None else round(point.table.attributed, 4),
            "kernels": None if point.table is None else point.table.to_json(),
        }

    def show_points(self, console: Console) -> None:
        """Print rates, rooflines and where the time goes, size by size."""
        say(
            console,
            f"this machine: {self.speed.peak / 1e12:,.4g} TFLOP/s of a matrix product, "
            f"{self.speed.bandwidth / 1e9:,.4g} GB/s of a copy",
        )
        for size in dict.fromkeys(point.size for point in self.points):
            points = [point for point in self.points if point.size == size]
            console.print(self._speeds(points))
            for line in self._versus(points):
                say(console, line)
            console.print(_roofline(points))
            for point in points:
                if point.table is not None:
                    console.print(_kernels(point, point.table))
                say(console, f"{point.step}: {point.verdict()}")
        if self.exit_code == 70:
            say(console, "the losses differ: not all of these steps train the same")

    def _versus(self, points: Sequence[StepPoint]) -> Iterator[str]:
        for position, point in enumerate(points):
            found = self.ratios(point)
            for other in points[:position]:
                ratio = found[other.step]
                yield (
                    f"{point.step} is {ratio.median:.2f} x as fast as {other.step} "
                    f"({ratio.low:.2f}-{ratio.high:.2f})"
                )
        if len(points) > 1:
            yield (
                f"loss: mean distance from {self._first_of(points[0]).step} over the first "
                f"{len(points[0].losses)} steps; rounding the weights alone gives "
                f"{self.chance(points[0]):.1e}"
            )
        if len(points) > 1 and not points[0].together:
            yield "timed one after the other, because they do not fit into memory together"

    def _speeds(self, points: Sequence[StepPoint]) -> Table:
        side, batch = points[0].size
        title = f"{side} px, {batch} source images: medians of the rounds"
        table = empty_table(title, "", "views/s", "of rounds", "img/s", "TF/s", "peak", "p50 ms",
                            "p95 ms", "GB", "loss", padding=0)  # fmt: skip
        for point in points:
            rate = spread(point.rates())
            table.add_row(
                point.step,
                f"{rate.median:,.0f}",
                f"{rate.low:,.0f}-{rate.high:,.0f}",
                f"{rate.median * point.batch / point.views:,.0f}",
                f"{point.tflops:.3g}",
                f"{100e12 * point.tflops / self.speed.peak:.0f} %",
                f"{point.milliseconds(0.5):.2f}",
                f"{point.milliseconds(0.95):.2f}",
                f"{point.memory / 1e9:.2f}",
                f"{self.mean_loss_difference(point):.1e}",
            )
        return table


def _bounds(found: Mapping[str, Bound], rate: float) -> dict[str, Any]:
    return {
        name: {
            "views_per_s": float(f"{bound.views_per_second:.5g}"),
            "share": float(f"{rate / bound.views_per_second:.4g}"),
        }
        for name, bound in found.items()
    }


def _roofline(points: Sequence[StepPoint]) -> Table:
    """Return a table of bounds at the measured speeds, shares reached, and bounds of an H200."""
    names = [point.step for point in points]
    table = empty_table("roofline: maximum views/s, and the share reached", "fusion", "MB/view",
                        "here", *(f"{name} %" for name in names), "H200",
                        padding=0)  # fmt: skip
    for level, bound in points[0].measured.items():
        reached = (100 * point.views_per_second / bound.views_per_second for point in points)
        table.add_row(
            f"{level} {bound.title}" if level != "convs" else bound.title,
            f"{bound.nbytes / 1e6:.1f}",
            f"{bound.views_per_second:,.0f}",
            *(f"{share:.1f}" for share in reached),
            f"{points[0].reference[level].views_per_second:,.0f}",
        )
    return table


def _kernels(point: StepPoint, kernels: TimeTable) -> Table:
    """Return a table of the time in percent, with stages as rows and kinds of work as columns."""
    what = "kernels" if kernels.device == "cuda" else "operations"
    kinds = kernels.kinds()
    phases = [phase for phase in PHASES if kernels.share(phase=phase)]
    table = empty_table(
        f"{point.step}: {1e3 * kernels.total:.2f} ms of {what}, in percent", "stage", "all",
        *(PHASES[phase] for phase in phases), *(KINDS[kind] for kind in kinds),
        padding=0,
    )  # fmt: skip
    for stage in kernels.stages():
        table.add_row(
            stage,
            _percent(kernels.share(stage=stage)),
            *(_percent(kernels.share(stage=stage, phase=phase)) for phase in phases),
            *(_percent(kernels.share(stage=stage, kind=kind)) for kind in kinds),
        )
    table.add_row(
        "all",
        "100",
        *(_percent(kernels.share(phase=phase)) for phase in phases),
        *(_percent(kernels.share(kind=kind)) for kind in kinds),
    )
    return table


def _percent(share: float) -> str:
    """Return two digits, or nothing: the table has no room for more."""
    if not share:
        return ""
    return f"{100 * share:.0f}" if share >= 0.0995 else f"{100 * share:.1f}"
