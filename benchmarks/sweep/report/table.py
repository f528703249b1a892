"""The table of a sweep: one row per cell."""

from __future__ import annotations

from collections.abc import Sequence

from fastrot.benchmarks.sweep.report.axes import short_names, value_text
from fastrot.benchmarks.sweep.report.cells import ReportCell, Sweep
from fastrot.benchmarks.sweep.report.scaling import Efficiency
from fastrot.report.html.blocks import Table
from fastrot.report.html.text import clean, percent, short
from fastrot.system.console import counted

_WHY = "why it was not measured"
_COLUMNS = ("views/s", "±", "views/s per rank", "weak", "strong", "data wait",
            "step p50 / p95 / p99, ms", "of peak", "memory, GiB", "bound by", "notes")  # fmt: skip


def cells_table(sweep: Sweep, found: Sequence[Efficiency]) -> Table:
    """Return a table of all cells; columns without any value are left out."""
    rows = _rows(sweep, found)
    used = {head for row in rows for head in row}
    place = [head for head in (*short_names(sweep.axes).values(), "cell", "in") if head in used]
    known = [head for head in _COLUMNS if head in used]
    texts = [
        [row.get(head, "–") for head in (*place, *([_WHY] if _WHY in row else known))]
        for row in rows
    ]
    title = counted(len(texts), "cell")
    return Table([*place, *known], texts, title, open=True, noted=True)


def _rows(sweep: Sweep, found: Sequence[Efficiency]) -> list[dict[str, str]]:
    """Return the text of each cell by column; unknown values are missing."""
    names, several = short_names(sweep.axes), len(sweep.environments) > 1
    scaling: dict[str, dict[str, str]] = {}
    for each in found:
        if each.against == "1 rank":
            efficiency = percent(100 * each.efficiency.median)
            scaling.setdefault(each.cell, {})[each.mode] = efficiency
    rows = []
    for cell in sweep.cells:
        row = {names[axis]: value_text(value) for axis, value in cell.axes.items()}
        row |= {} if cell.axes else {"cell": clean(cell.key, 20)}
        row |= {"in": cell.environment} if several and cell.environment else {}
        rows.append(row | scaling.get(cell.key, {}) | _figures(cell))
    return rows


def _figures(cell: ReportCell) -> dict[str, str]:
    figures = cell.figures
    if figures is None:
        mark = "–" if cell.status == "not measured" else "✗"
        why = "" if cell.reason == cell.status else f": {clean(cell.reason, 400)}"
        return {_WHY: f"{mark} {cell.status}{why}"}
    rate, wait = figures.views_per_s, figures.data_wait
    share, memory = figures.share_of_peak, figures.memory_bytes
    half = 50 * (rate.high - rate.low) / rate.median
    notes = [figures.verdict]
    if figures.contaminated:
        notes.append(f"contaminated: others used {100 * (figures.busy or 0):.0f} % of the cores")
    if figures.repeats < 2:
        notes.append("one repeat: its spread is unknown")
    if cell.record is not None and cell.record.attempts > 1:
        notes.append(f"{cell.record.attempts} attempts")
    if not cell.is_expected:
        notes.append("no longer in the sweep: other code, settings or data")
    row = {
        "views/s": short(rate.median),
        "±": "?" if figures.repeats < 2 else percent(half),
        "views/s per rank": short(figures.views_per_s_per_rank.median),
        "data wait": "" if wait is None else percent(100 * wait.median),
        "step p50 / p95 / p99, ms": " / ".join(short(ms, 3) for ms in figures.step_ms.values()),
        "of peak": "" if share is None else percent(100 * share),
        "memory, GiB": "" if memory is None else f"{memory / 2**30:.2f}",
        "bound by": figures.bound_by + "*" * figures.contaminated,
        "notes": "; ".join(notes),
    }
    return {head: text for head, text in row.items() if text}
