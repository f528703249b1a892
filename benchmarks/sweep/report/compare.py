"""A sweep beside an earlier one: what became slower, beyond the spread of its repeats."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastrot.benchmarks.common.harness import Spread
from fastrot.benchmarks.sweep.record import CellRecord
from fastrot.benchmarks.sweep.report.cells import ReportCell, Sweep, read_sweep, sweep_of_report
from fastrot.benchmarks.sweep.report.comparable import (
    EXECUTION,
    changed,
    differences,
    fingerprint,
    told,
)
from fastrot.benchmarks.sweep.report.figures import Figures, overlap, quotient
from fastrot.errors import SLOWER, UsageError
from fastrot.report.html.text import clean, plain

Outcome = Literal[
    "slower", "faster", "within the threshold", "no difference beyond the spread",
    "failed now", "missing now", "other settings", "new", "not measured in either",
]  # fmt: skip
REGRESSIONS = ("slower", "failed now", "missing now", "other settings")
"""Outcomes that end the command with a failure: what cannot be compared did not pass."""


@dataclass(frozen=True)
class Compared:
    """One cell, now and then.

    Attributes:
        axes: where it lies.
        kind: what was measured; empty if it is not known.
        outcome: in one of fixed words.
        ratio: rate now over rate then, or None.
        now: views/s over all ranks, or None.
        then: the same in the baseline, or None.
        note: what to know of it.
    """

    axes: Mapping[str, Any]
    kind: str
    outcome: Outcome
    ratio: Spread | None = None
    now: Spread | None = None
    then: Spread | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        spreads = {
            "ratio": self.ratio,
            "views_per_s": self.now,
            "baseline_views_per_s": self.then,
        }
        return {
            "axes": dict(self.axes),
            "outcome": self.outcome,
            **{name: None if s is None else s.to_json() for name, s in spreads.items()},
            "note": self.note or None,
        }


@dataclass(frozen=True)
class Comparison:
    """A sweep beside its baseline.

    Attributes:
        baseline: name of its file.
        threshold: percent.
        cells: of either.
        lines: what to know of the whole.
    """

    baseline: str
    threshold: float
    cells: Sequence[Compared]
    lines: Sequence[str]

    @property
    def regressions(self) -> list[Compared]:
        """The cells for which the command fails."""
        return [cell for cell in self.cells if cell.outcome in REGRESSIONS]

    @property
    def ordered(self) -> list[Compared]:
        """The cells, regressions first, the slowest before the others."""

        def key(cell: Compared) -> tuple[bool, float]:
            ratio = cell.ratio.median if cell.ratio is not None else math.inf
            return cell.outcome not in REGRESSIONS, ratio

        return sorted(self.cells, key=key)

    @property
    def changes(self) -> list[Compared]:
        """The cells that are not as they were, in the same order."""
        return [cell for cell in self.ordered if cell.outcome in (*REGRESSIONS, "faster", "new")]

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return SLOWER if self.regressions else 0

    @property
    def summary(self) -> str:
        """How many cells there are of each outcome."""
        counts: dict[str, int] = {}
        for cell in self.cells:
            counts[cell.outcome] = counts.get(cell.outcome, 0) + 1
        order = sorted(counts, key=lambda outcome: (outcome not in REGRESSIONS, -counts[outcome]))
        return ", ".join(f"{counts[outcome]} {outcome}" for outcome in order)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "baseline": self.baseline,
            "threshold_percent": self.threshold,
            "regressions": len(self.regressions),
            "lines": list(self.lines),
            "cells": [cell.to_json() for cell in self.cells],
        }


def read_baseline(path: Path) -> Sweep:
    """An earlier sweep: its folder, or the ``report.json`` that was kept of it.

    Raises:
        UsageError: there is nothing of that name, or nothing was measured.
        BadDataError: the file is damaged.
    """
    sweep = read_sweep(path) if path.is_dir() else sweep_of_report(path)
    if not any(True for _ in sweep.measured()):
        raise UsageError(
            f"--baseline {path}: no cell of it was measured, so nothing can be compared with it"
        )
    return sweep


def compare(now: Sweep, then: Sweep, threshold: float, baseline: str) -> Comparison:
    """Compare the cells of two sweeps that have the same axes and settings.

    A cell is slower if its median fell by more than the threshold and its spread lies wholly
    below that of the baseline. What was measured then and failed, is missing, or was measured
    with other settings now counts as a regression too.

    Args:
        now: the sweep.
        then: an earlier one.
        threshold: percent, at least 0.
        baseline: its name.

    Raises:
        UsageError: the threshold is no such number.
    """
    if not (0 <= threshold < 100):
        raise UsageError(f"--threshold={threshold:g} must be a percentage from 0 to below 100")
    mine, theirs = _by_place(now, None), _by_place(then, now)
    pairs = [(mine.get(place), theirs.get(place)) for place in dict.fromkeys([*mine, *theirs])]
    cells = [_compared(one, other, threshold) for one, other in pairs]
    lines = list(_lines(pairs, then))
    for sweep, places, name in ((now, mine, "the sweep"), (then, theirs, "the baseline")):
        if (others := len(_placed(sweep)) - len(places)) > 0:
            lines.append(
                f"not compared: {others} of {name}, for another record of "
                "the same axes is what is asked for now, or is from the same host."
            )
    return Comparison(baseline, threshold, cells, lines)


def _by_place(sweep: Sweep, beside: Sweep | None) -> dict[str, ReportCell]:
    """One cell a place: the one that its sweep asked for, measured, on a host of the other's."""
    hosts = {cell.record.host for cell in beside.cells if cell.record} if beside else set()

    def worth(cell: ReportCell) -> tuple[bool, bool, bool, str]:
        record = cell.record
        same = record is not None and record.host in hosts
        date = plain(record.record.get("date")) if record is not None else ""
        return cell.is_expected, cell.figures is not None, same, date

    places: dict[str, ReportCell] = {}
    for cell in _placed(sweep):
        place = _place(cell)
        if place not in places or worth(cell) > worth(places[place]):
            places[place] = cell
    return places


def _placed(sweep: Sweep) -> list[ReportCell]:
    """The cells whose axes are known: a damaged record may not tell them."""
    return [cell for cell in sweep.cells if cell.axes or cell.record is not None]


def _place(cell: ReportCell) -> str:
    return json.dumps(dict(cell.axes), sort_keys=True, default=str)


def _compared(now: ReportCell | None, then: ReportCell | None, threshold: float) -> Compared:
    cell = now or then
    assert cell is not None
    kind = cell.record.kind if cell.record is not None else ""
    mine, theirs = (each.figures if each else None for each in (now, then))
    rate = mine.views_per_s if mine else None
    old = theirs.views_per_s if theirs else None
    if theirs is None or old is None:
        why = "" if then is None or then.status == "done" else f"then: {clean(then.reason, 80)}"
        outcome: Outcome = "new" if mine else "not measured in either"
        return Compared(cell.axes, kind, outcome, None, rate, None, why)
    if now is None or mine is None or rate is None:
        gone = now is None or now.status == "not measured"
        why = "" if now is None else clean(now.reason, 200)
        return Compared(
            cell.axes, kind, "missing now" if gone else "failed now", None, None, old, why
        )
    assert now.record is not None and then is not None and then.record is not None
    if other := _other_settings(now.record, then.record, mine, theirs):
        return Compared(cell.axes, kind, "other settings", None, rate, old, told(other))
    ratio = quotient(rate, old)
    execution = changed(then.record.config, now.record.config)
    notes = [f"now {told(execution)}"] if execution else []
    notes += ["1 repeat: its spread is not known"] if ratio.repeats < 2 else []
    for when, each in (("now", mine), ("then", theirs)):
        if each.is_contaminated:
            share = 100 * (each.busy or 0)
            notes.append(f"contaminated {when}: others used {share:.0f} % of the cores")
    outcome = _outcome(ratio.median, overlap(rate, old), threshold)
    return Compared(cell.axes, kind, outcome, ratio, rate, old, "; ".join(notes))


def _other_settings(
    now: CellRecord, then: CellRecord, mine: Figures, theirs: Figures
) -> dict[str, str]:
    """What differs in what was measured, and not only in how it was carried out."""
    other = changed(then.config, now.config, EXECUTION - set(now.axes))
    for name in ("kind", "ranks", "nodes", "global_batch", "views"):
        before, after = getattr(theirs, name), getattr(mine, name)
        if before != after:
            other[name] = f"{before} -> {after}"
    return other


def _outcome(ratio: float, overlaps: bool, threshold: float) -> Outcome:
    if overlaps:
        return "no difference beyond the spread"
    step = threshold / 100
    if math.isclose(ratio, 1 - step) or 1 - step < ratio < 1 + step:
        return "within the threshold"
    return "slower" if ratio < 1 else "faster"


def _lines(
    pairs: Sequence[tuple[ReportCell | None, ReportCell | None]], then: Sweep
) -> Iterator[str]:
    """How the two differ besides their numbers."""
    if then.notes:
        yield from (f"baseline: {note}" for note in then.notes)
    found: dict[str, int] = {}
    both = [
        (dict(fingerprint(one.record)), dict(fingerprint(other.record)))
        for one, other in pairs
        if one and other and one.figures and other.figures and one.record and other.record
    ]
    for mine, theirs in both:
        for line in differences(theirs, mine):
            found[line] = found.get(line, 0) + 1
    if any(mine["host"] != theirs["host"] for mine, theirs in both):
        yield (
            "The baseline is from another host: ratios compare the machines as well as the code. "
            "Measure the baseline's code on this host to compare the code alone."
        )
    for line, count in found.items():
        name, _, change = line.partition(" ")
        yield f"{name}: {change} (baseline / now) in {count} of {len(both)} compared cells"
    if not both:
        yield "No cell was measured in both: nothing could be compared."
