"""Comparison of a sweep with an earlier one: what became slower, beyond the spread of repeats."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrot.benchmarks.common.harness import Spread
from fastrot.benchmarks.sweep.report.axes import Axes, place
from fastrot.benchmarks.sweep.report.cells import ReportCell, Sweep, read_report, read_sweep
from fastrot.benchmarks.sweep.report.comparable import EXECUTION, changes, fingerprint
from fastrot.benchmarks.sweep.report.figures import overlap, quotient, to_plain
from fastrot.errors import SLOWER, UsageError
from fastrot.report.html.text import clean, short

NO_DIFFERENCE = "no difference beyond the spread"
AS_BEFORE = ("within the threshold", NO_DIFFERENCE, "not measured in either")
REGRESSIONS = ("slower", "failed now", "missing now", "other settings")
"""Outcomes for which the command fails: a cell that cannot be compared has not passed."""

Pair = tuple[ReportCell | None, ReportCell | None]


@dataclass(frozen=True)
class Compared:
    """One cell, now and in the baseline; the names are those of ``report.json``."""

    axes: Axes
    outcome: str
    ratio: Spread | None = None
    views_per_s: Spread | None = None
    baseline_views_per_s: Spread | None = None
    note: str | None = None

    def row(self) -> list[str]:
        """Return cell, outcome, ratio, its spread, views/s now and before, and note, as text."""
        ratio, rates = self.ratio, (self.views_per_s, self.baseline_views_per_s)
        return [
            place(self.axes),
            f"✗ {self.outcome}" if self.outcome in REGRESSIONS else self.outcome,
            "–" if ratio is None else f"{ratio.median:.3f}",
            "–" if ratio is None else f"{ratio.low:.3f}-{ratio.high:.3f}",
            *("–" if rate is None else short(rate.median) for rate in rates),
            self.note or "",
        ]


@dataclass(frozen=True)
class Comparison:
    """A sweep compared with its baseline: the cells of both, and remarks on the whole."""

    baseline: str
    threshold: float
    cells: Sequence[Compared]
    lines: Sequence[str]

    @property
    def regressions(self) -> int:
        """Return the number of cells for which the command fails."""
        return sum(cell.outcome in REGRESSIONS for cell in self.cells)

    @property
    def exit_code(self) -> int:
        """Return the exit code of the command."""
        return SLOWER if self.regressions else 0

    @property
    def summary(self) -> str:
        """Return the number of cells with each outcome, as text."""
        counts = Counter(cell.outcome for cell in self.ordered())
        return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())

    def ordered(self) -> list[Compared]:
        """Return the cells, regressions first, each group from slow to fast."""

        def order(cell: Compared) -> tuple[bool, float]:
            ratio = math.inf if cell.ratio is None else cell.ratio.median
            return cell.outcome not in REGRESSIONS, ratio

        return sorted(self.cells, key=order)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "baseline": self.baseline,
            "threshold_percent": self.threshold,
            "regressions": self.regressions,
            "lines": list(self.lines),
            "cells": [to_plain(cell) for cell in self.cells],
        }


def read_baseline(path: Path) -> Sweep:
    """Read an earlier sweep from its folder or from its ``report.json``.

    Raises:
        UsageError: the path does not exist, or no cell was measured.
        BadDataError: the file is damaged.
    """
    sweep = read_sweep(path) if path.is_dir() else read_report(path)
    if not sweep.measured:
        raise UsageError(
            f"--baseline {path}: none of its cells was measured, so nothing can be compared with "
            "it; name another sweep"
        )
    return sweep


def compare(now: Sweep, then: Sweep, threshold: float, baseline: str) -> Comparison:
    """Compare the cells of two sweeps that have the same axes and settings.

    A cell is slower if its median fell by more than the threshold, in percent, and its spread is
    entirely below that of the baseline. A cell that was measured in the baseline, but now failed,
    is missing or has other settings, also counts as a regression.

    Raises:
        UsageError: the threshold is below 0, or 100 or more.
    """
    if not (0 <= threshold < 100):
        raise UsageError(f"--threshold={threshold:g} must be a percentage from 0 to less than 100")
    mine = _by_place(now, set())
    theirs = _by_place(then, {cell.record.host for cell in now.cells if cell.record is not None})
    pairs = [(mine.get(at), theirs.get(at)) for at in dict.fromkeys([*mine, *theirs])]
    lines = [*(f"baseline: {note}" for note in then.notes), *_differences(pairs)]
    for sweep, places, name in ((now, mine, "the sweep"), (then, theirs, "the baseline")):
        if others := sum(map(_has_place, sweep.cells)) - len(places):
            lines.append(f"not compared: {others} of {name}, other records of the same axes")
    cells = [_compared(one, other, threshold / 100) for one, other in pairs]
    return Comparison(baseline, threshold, cells, lines)


def _by_place(sweep: Sweep, hosts: set[str]) -> dict[str, ReportCell]:
    """Return one cell per place; if there are several, prefer one measured on one of the hosts."""

    def worth(cell: ReportCell) -> tuple[bool, bool, bool]:
        is_near = cell.record is not None and cell.record.host in hosts
        return cell.is_expected, cell.figures is not None, is_near

    ordered = sorted(filter(_has_place, sweep.cells), key=worth)
    return {json.dumps(dict(each.axes), sort_keys=True, default=str): each for each in ordered}


def _has_place(cell: ReportCell) -> bool:
    """Return whether the cell's axes are known; a damaged record may lack them."""
    return bool(cell.axes) or cell.record is not None


def _compared(now: ReportCell | None, then: ReportCell | None, step: float) -> Compared:
    """Compare two cells of one place, one of which may be missing; ``step`` is the threshold."""
    axes = (now or then or ReportCell("", {}, "not measured")).axes
    mine, theirs = (None if each is None else each.figures for each in (now, then))
    rate, old = (None if each is None else each.views_per_s for each in (mine, theirs))
    if then is None or then.record is None or theirs is None or old is None:
        why = f"then: {clean(then.reason, 80)}" if then else None
        return Compared(axes, "new" if mine else "not measured in either", None, rate, None, why)
    if now is None or now.record is None or mine is None or rate is None:
        outcome = "missing now" if now is None or now.status == "not measured" else "failed now"
        return Compared(axes, outcome, None, None, old, clean(now.reason, 200) if now else None)
    before, after = then.record.config, now.record.config
    names = ("kind", "ranks", "nodes", "global_batch_images", "views_per_image")
    other = changes(before, after, EXECUTION - set(axes)) + changes(
        *({name: getattr(each, name) for name in names} for each in (theirs, mine))
    )
    if other:
        return Compared(axes, "other settings", None, rate, old, ", ".join(other))
    ratio = quotient(rate, old)
    execution = ", ".join(changes(before, after))
    notes = [f"now {execution}"] if execution else []
    notes += ["1 repeat: its spread is unknown"] if ratio.repeats < 2 else []
    for when, each in (("now", mine), ("then", theirs)):
        if each.contaminated:
            share = 100 * (each.busy or 0)
            notes.append(f"contaminated {when}: others used {share:.0f} % of the cores")
    median = ratio.median
    if overlap(rate, old):
        outcome = NO_DIFFERENCE
    elif math.isclose(median, 1 - step) or 1 - step < median < 1 + step:
        outcome = "within the threshold"
    else:
        outcome = "slower" if median < 1 else "faster"
    return Compared(axes, outcome, ratio, rate, old, "; ".join(notes) or None)


def _differences(pairs: Sequence[Pair]) -> Iterator[str]:
    """Yield lines on how the two environments differ."""
    both = [
        (fingerprint(one.record), fingerprint(other.record))
        for one, other in pairs
        if one and other and one.figures and other.figures and one.record and other.record
    ]
    if not both:
        yield "No cell was measured in both: nothing could be compared."
    if any(mine["host"] != theirs["host"] for mine, theirs in both):
        yield (
            "The baseline is from another host: ratios compare the machines as well as the code. "
            "Measure the baseline's code on this host to compare the code alone."
        )
    found = Counter(line for mine, theirs in both for line in changes(theirs, mine))
    for line, count in found.items():
        yield f"{line} (baseline -> now) in {count} of {len(both)} compared cells"
