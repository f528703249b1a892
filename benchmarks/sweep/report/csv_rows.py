"""``report.csv``: one row per cell; each column has its unit in its name."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from fastrot.benchmarks.common.harness import Spread
from fastrot.benchmarks.sweep.report.cells import ReportCell, Sweep
from fastrot.benchmarks.sweep.report.figures import Figures
from fastrot.benchmarks.sweep.report.scaling import Efficiency
from fastrot.report.html.text import clean, plain

COLUMNS = """
key kind status reason environment expected ranks nodes global_batch_images views_per_image repeats
views_per_s views_per_s_low views_per_s_high
views_per_s_per_rank views_per_s_per_rank_low views_per_s_per_rank_high
images_per_s images_per_s_low images_per_s_high
images_per_s_per_rank images_per_s_per_rank_low images_per_s_per_rank_high
step_p50_ms step_p95_ms step_p99_ms
data_wait_fraction data_wait_fraction_low data_wait_fraction_high
first_batch_s loader_ceiling_images_per_s compute_ceiling_images_per_s bound_by
share_of_peak_fraction memory_bytes_per_rank loss busy_fraction contaminated
weak_efficiency_vs_1_rank weak_efficiency_vs_1_node
strong_efficiency_vs_1_rank strong_efficiency_vs_1_node
attempts seconds exit_code job host code commit
""".split()
"""Columns that other programs read, so they are never renamed. Axes follow as ``axis.NAME``."""
_RENAMED = {
    "data_wait": "data_wait_fraction",
    "share_of_peak": "share_of_peak_fraction",
    "memory_bytes": "memory_bytes_per_rank",
    "busy": "busy_fraction",
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet evaluates text with these


def to_csv(sweep: Sweep, found: Sequence[Efficiency]) -> str:
    """Return the table as text; text that a spreadsheet would evaluate gets an apostrophe."""
    scaling: dict[str, dict[str, float]] = {}
    for each in found:
        name = f"{each.mode}_efficiency_vs_{each.against.replace(' ', '_')}"
        scaling.setdefault(each.cell, {})[name] = each.efficiency.median
    heads = [*COLUMNS, *(f"axis.{axis}" for axis in sweep.axes)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_safe(head) for head in heads])
    for cell in sweep.cells:
        row = _row(cell) | scaling.get(cell.key, {})
        writer.writerow([_safe(row.get(head)) for head in heads])
    return text.getvalue()


def _row(cell: ReportCell) -> dict[str, Any]:
    """Return what is known about a cell, by column."""
    row = {f"axis.{axis}": value for axis, value in cell.axes.items()}
    if cell.record is not None:
        row |= vars(cell.record) | {"commit": cell.record.record.get("commit")}
    if cell.figures is not None:
        row |= _figures(cell.figures)
    state = {name: getattr(cell, name) for name in ("key", "status", "reason", "environment")}
    return row | state | {"expected": cell.is_expected}


def _figures(figures: Figures) -> dict[str, Any]:
    row: dict[str, Any] = {f"step_{part}_ms": value for part, value in figures.step_ms.items()}
    for field, value in vars(figures).items():
        name = _RENAMED.get(field, field)
        if isinstance(value, Spread):
            row |= {name: value.median, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            row[name] = value
    return row


def _safe(value: Any) -> str | int:
    """Return a value in a form that is safe in a spreadsheet."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = clean(plain(value))
    return f"'{text}" if text.startswith(_FORMULA) else text
