"""Figures of a cell, derived from its measurements, and what limits its rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastrot.benchmarks.common.harness import Spread, spread
from fastrot.benchmarks.sweep.record import CellRecord

BUSY = 0.1
"""Fraction of the cores above which other programs contaminate a measurement."""
_LIKE = 0.1  # ceilings closer than this limit together: each was measured only once
_REACHED = 0.75  # a ceiling limits only rates of at least this fraction of it
_MOST = 10**12  # no sound record has a larger count


@dataclass(frozen=True)
class Figures:
    """The figures of one measured cell, under their names in ``report.json``.

    Rates and ceilings are of all ranks unless the name says otherwise; ``step_ms`` holds p50, p95
    and p99; ``data_wait``, ``share_of_peak`` and ``busy`` are shares; memory is that of the rank
    that used the most.
    """

    kind: str
    ranks: int
    nodes: int
    global_batch_images: int
    views_per_image: int
    repeats: int
    views_per_s: Spread
    views_per_s_per_rank: Spread
    images_per_s: Spread
    images_per_s_per_rank: Spread
    step_ms: Mapping[str, float]
    data_wait: Spread | None
    loader_ceiling_images_per_s: float | None
    compute_ceiling_images_per_s: float | None
    bound_by: str
    verdict: str
    share_of_peak: float | None
    memory_bytes: float | None
    first_batch_s: float | None
    loss: float | None
    busy: float | None
    contaminated: bool


def figures_of(record: CellRecord) -> Figures | None:
    """Return the figures of a record, or None if it was not measured.

    Raises:
        ValueError: a number is impossible.
    """
    measured = record.measured
    if record.status != "done":
        return None
    if measured is None:
        raise ValueError("done, but without measurements")
    ranks, views = measured.ranks, measured.views
    for name in ("ranks", "nodes", "global_batch", "views"):
        if not 1 <= getattr(measured, name) <= _MOST:
            raise ValueError(f"{name} {getattr(measured, name)} is not a count")
    if not measured.images_per_s or not all(1 / _MOST < r < _MOST for r in measured.images_per_s):
        raise ValueError("images_per_s must hold rates")
    if not all(0 <= wait <= 1 + 1e-6 for wait in measured.data_wait):
        raise ValueError("data_wait must hold shares")
    rates, waits = spread(measured.images_per_s), measured.data_wait
    loader = _positive(measured.loader_images_per_s)
    compute = _positive(measured.compute_images_per_s)
    bound, verdict = _bound(record.kind, rates.median, loader, compute)
    flops, peak = _positive(measured.flops_per_view), _positive(measured.peak_flops)
    return Figures(
        kind=record.kind,
        ranks=ranks,
        nodes=measured.nodes,
        global_batch_images=measured.global_batch,
        views_per_image=views,
        repeats=rates.repeats,
        views_per_s=scaled(rates, views),
        views_per_s_per_rank=scaled(rates, views / ranks),
        images_per_s=rates,
        images_per_s_per_rank=scaled(rates, 1 / ranks),
        step_ms=measured.steps_ms,
        data_wait=spread(waits) if waits and record.kind == "train" else None,
        loader_ceiling_images_per_s=loader,
        compute_ceiling_images_per_s=compute,
        bound_by=bound,
        verdict=verdict,
        share_of_peak=_positive(rates.median * views / ranks * (flops / peak))
        if flops and peak
        else None,
        memory_bytes=_positive(measured.memory_bytes),
        first_batch_s=measured.first_batch_s,
        loss=measured.loss,
        busy=measured.busy,
        contaminated=(measured.busy or 0.0) > BUSY,
    )


def scaled(values: Spread, factor: float) -> Spread:
    """Return a spread in another unit."""
    median, low, high, repeats = values
    return Spread(median * factor, low * factor, high * factor, repeats)


def quotient(above: Spread, below: Spread) -> Spread:
    """Return ``above`` / ``below``, from the smallest to the largest possible ratio.

    The repeats of two cells are not pairs, so the extremes are those of any two repeats.
    """
    low, high = above.low / below.high, above.high / below.low
    return Spread(above.median / below.median, low, high, min(above.repeats, below.repeats))


def overlap(one: Spread, other: Spread) -> bool:
    """Return whether two spreads overlap, so that neither cell is known to be faster."""
    return one.low <= other.high and other.low <= one.high


def to_plain(fields: object) -> dict[str, Any]:
    """Return the fields of a dataclass with each spread as a JSON object."""
    return {k: v.to_json() if isinstance(v, Spread) else v for k, v in vars(fields).items()}


def _bound(kind: str, rate: float, loader: float | None, compute: float | None) -> tuple[str, str]:
    """Return what limits a rate, as a keyword and as text: the lower ceiling, if it is reached."""
    if kind == "loader":
        return "loader", "the loader alone was measured"
    if loader is None or compute is None:
        return "unknown", "not known: its ceilings were not measured"
    ceiling, lower = min((loader, "the loader"), (compute, "compute"))
    reached = f"{100 * rate / ceiling:.0f} % of"
    if rate < _REACHED * ceiling:
        why = "they share cores, or ranks wait for each other"
        return "neither", f"neither ceiling: only {reached} that of {lower}; {why}"
    if abs(loader - compute) <= _LIKE * ceiling:
        return "both", f"loader and compute alike: {reached} the lower ceiling"
    return lower.split()[-1], f"{lower}: {reached} its ceiling"


def _positive(value: float | None) -> float | None:
    return value if value is not None and 0 < value < math.inf else None
