"""What follows from the measurements of one cell: rates, ceilings, what bounds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastrot.benchmarks.common.harness import Spread, spread
from fastrot.benchmarks.sweep.record import CellRecord, Measured
from fastrot.report.html.text import number

BUSY = 0.1
"""Share of the cores in others' hands from which on a measurement is contaminated."""
_LIKE = 0.1  # ceilings that are nearer to each other bound together: they are single values
_MOST = 10**12  # of anything that is counted: beyond it no record is sound
_REACHED = 0.75  # a ceiling that is not reached so far does not bound

Bound = Literal["loader", "compute", "both", "neither", "unknown"]


@dataclass(frozen=True)
class Figures:
    """The figures of one measured cell.

    Attributes:
        kind: what was measured.
        ranks: processes, one a GPU.
        nodes: machines.
        global_batch: source images a step over all ranks.
        views: of an image.
        images_per_s: source images/s over all ranks, over the repeats.
        step_ms: p50, p95 and p99 of a step, as far as they are known.
        data_wait: share of the time, over the repeats; None for a loader alone.
        loader_ceiling: source images/s over all ranks of the loader alone.
        compute_ceiling: source images/s over all ranks of the step alone.
        peak_share: of the FLOP/s that the devices have.
        memory_bytes: most of a rank.
        first_batch_s: seconds to the first batch.
        loss: mean over the measured steps.
        busy: share of the cores that other programs used.
    """

    kind: str
    ranks: int
    nodes: int
    global_batch: int
    views: int
    images_per_s: Spread
    step_ms: Mapping[str, float]
    data_wait: Spread | None
    loader_ceiling: float | None
    compute_ceiling: float | None
    peak_share: float | None
    memory_bytes: int | None
    first_batch_s: float | None
    loss: float | None
    busy: float | None

    @property
    def views_per_s(self) -> Spread:
        """Over all ranks."""
        return scaled(self.images_per_s, self.views)

    @property
    def views_per_s_rank(self) -> Spread:
        """Of one rank."""
        return scaled(self.images_per_s, self.views / self.ranks)

    @property
    def images_per_s_rank(self) -> Spread:
        """Source images/s of one rank."""
        return scaled(self.images_per_s, 1 / self.ranks)

    @property
    def mean_step_ms(self) -> float:
        """Milliseconds of a step at the median rate."""
        return 1e3 * self.global_batch / self.images_per_s.median

    @property
    def is_contaminated(self) -> bool:
        """Whether other programs took part of the machine meanwhile."""
        return self.busy is not None and self.busy > BUSY

    @property
    def bound(self) -> Bound:
        """Which ceiling bounds it: the lower one, if it is reached at all."""
        loader, compute = self.loader_ceiling, self.compute_ceiling
        if self.kind == "loader":
            return "loader"
        if loader is None or compute is None:
            return "unknown"
        if self.images_per_s.median < _REACHED * min(loader, compute):
            return "neither"
        if abs(loader - compute) <= _LIKE * min(loader, compute):
            return "both"
        return "loader" if loader < compute else "compute"

    @property
    def verdict(self) -> str:
        """What bounds it, in words."""
        if self.kind == "loader":
            return "the loader alone was measured"
        loader, compute = self.loader_ceiling, self.compute_ceiling
        if loader is None or compute is None:
            return "not known: its ceilings were not measured"
        lower = "loader" if loader < compute else "compute"
        share = f"{100 * self.images_per_s.median / min(loader, compute):.0f} % of "
        return {
            "loader": f"the loader: {share}its ceiling",
            "compute": f"compute: {share}its ceiling",
            "both": f"loader and compute alike: {share}the lower ceiling",
            "neither": f"neither ceiling: only {share}that of the {lower}; they share cores, or "
            "ranks wait for each other",
        }[self.bound]

    def to_json(self) -> dict[str, Any]:
        """Plain values, units in the names."""
        wait = self.data_wait
        return {
            "ranks": self.ranks,
            "nodes": self.nodes,
            "global_batch_images": self.global_batch,
            "views_per_s": self.views_per_s.to_json(),
            "views_per_s_per_rank": self.views_per_s_rank.to_json(),
            "images_per_s": self.images_per_s.to_json(),
            "images_per_s_per_rank": self.images_per_s_rank.to_json(),
            "step_ms": dict(self.step_ms),
            "data_wait": None if wait is None else wait.to_json(),
            "loader_ceiling_images_per_s": self.loader_ceiling,
            "compute_ceiling_images_per_s": self.compute_ceiling,
            "bound_by": self.bound,
            "verdict": self.verdict,
            "share_of_peak": self.peak_share,
            "memory_bytes": self.memory_bytes,
            "first_batch_s": self.first_batch_s,
            "loss": self.loss,
            "busy": self.busy,
            "contaminated": self.is_contaminated,
        }


def scaled(values: Spread, factor: float) -> Spread:
    """A spread in another unit."""
    low, high = values.low * factor, values.high * factor
    return Spread(values.median * factor, low, high, values.repeats)


def quotient(above: Spread, below: Spread) -> Spread:
    """How many times ``below`` is ``above``: from the least to the largest that is possible.

    The repeats of two cells do not belong together in pairs, so the extremes are those of any two.
    """
    return Spread(
        above.median / below.median,
        above.low / below.high,
        above.high / below.low,
        min(above.repeats, below.repeats),
    )


def overlap(one: Spread, other: Spread) -> bool:
    """Whether two spreads share a value, so that neither cell is known to be the faster."""
    return one.low <= other.high and other.low <= one.high


def figures_of(record: CellRecord) -> Figures | None:
    """The figures of a record; None if it was not measured.

    Raises:
        ValueError: a number of it is none, or is impossible.
    """
    measured = record.measured
    if record.status != "done":
        return None
    if measured is None:
        raise ValueError("done, but without measurements")
    for name in ("ranks", "nodes", "global_batch", "views"):
        value = getattr(measured, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST:
            raise ValueError(f"{name} {value!r} is no count")
    if not measured.images_per_s or not all(1 / _MOST < r < _MOST for r in measured.images_per_s):
        raise ValueError("images_per_s has to hold rates")
    waits = measured.data_wait
    if not all(0 <= wait <= 1 + 1e-6 for wait in waits):
        raise ValueError("data_wait has to hold shares")
    rates = spread(measured.images_per_s)
    return Figures(
        kind=record.kind,
        ranks=measured.ranks,
        nodes=measured.nodes,
        global_batch=measured.global_batch,
        views=measured.views,
        images_per_s=rates,
        step_ms=_steps(measured.steps_ms),
        data_wait=_spread_of(waits) if record.kind == "train" else None,
        loader_ceiling=_positive(measured, "loader_images_per_s"),
        compute_ceiling=_positive(measured, "compute_images_per_s"),
        peak_share=_peak_share(measured, rates.median),
        memory_bytes=None if (size := _positive(measured, "memory_bytes")) is None else int(size),
        first_batch_s=number(vars(measured), "first_batch_s"),
        loss=number(vars(measured), "loss"),
        busy=number(vars(measured), "busy"),
    )


def _steps(steps: Mapping[str, float]) -> dict[str, float]:
    known = {name: number(steps, name) for name in ("p50", "p95", "p99")}
    return {name: value for name, value in known.items() if value is not None}


def _spread_of(values: Sequence[float]) -> Spread | None:
    return spread(values) if values else None


def _positive(measured: Measured, name: str) -> float | None:
    value = number(vars(measured), name)
    return value if value is not None and value > 0 else None


def _peak_share(measured: Measured, images_per_s: float) -> float | None:
    flops, peak = _positive(measured, "flops_per_view"), _positive(measured, "peak_flops")
    if flops is None or peak is None:
        return None
    share = images_per_s * measured.views / measured.ranks * (flops / peak)
    return share if math.isfinite(share) else None
