"""``report.csv``: one row a cell, the unit of every column in its name."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from fastrot.benchmarks.sweep.report.cells import ReportCell, Sweep
from fastrot.benchmarks.sweep.report.scaling import Efficiency, by_cell
from fastrot.report.html.text import clean, plain

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet knows what it should compute
_AGAINST = {
    f"{mode}_efficiency_vs_{against.replace(' ', '_')}": f"{mode} {against}"
    for mode in ("weak", "strong")
    for against in ("1 rank", "1 node")
}


def to_csv(sweep: Sweep, found: Sequence[Efficiency]) -> str:
    """The table as text; columns of the axes, ``axis.NAME``, come last.

    Text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    scaling = by_cell(found)
    rows = [_row(cell, scaling.get(cell.key, [])) for cell in sweep.cells]
    axes = [f"axis.{axis}" for axis in sweep.names.all]
    heads = [*_row(ReportCell("", {}, "not measured"), []), *axes]
    text = io.StringIO()
    writer = csv.DictWriter(text, [_safe(head) for head in heads], lineterminator="\n")
    writer.writeheader()
    for cell, row in zip(sweep.cells, rows, strict=True):
        values = row | {f"axis.{axis}": value for axis, value in cell.axes.items()}
        writer.writerow({_safe(name): _safe(value) for name, value in values.items()})
    return text.getvalue()


def _row(cell: ReportCell, scaling: Sequence[Efficiency]) -> dict[str, Any]:
    figures, record = cell.figures, cell.record
    efficiency = {f"{each.mode} {each.against}": each.efficiency.median for each in scaling}
    row: dict[str, Any] = {
        "key": cell.key,
        "kind": record.kind if record else None,
        "status": cell.status,
        "reason": cell.reason,
        "environment": cell.environment,
        "expected": cell.is_expected,
        "ranks": figures.ranks if figures else None,
        "nodes": figures.nodes if figures else None,
        "global_batch_images": figures.global_batch if figures else None,
        "views_per_image": figures.views if figures else None,
        "repeats": figures.images_per_s.repeats if figures else None,
    }
    for name in ("views_per_s", "views_per_s_rank", "images_per_s", "images_per_s_rank"):
        values = getattr(figures, name) if figures else None
        row |= _spread(name.replace("_s_rank", "_s_per_rank"), values)
    for place in ("p50", "p95", "p99"):
        row[f"step_{place}_ms"] = figures.step_ms.get(place) if figures else None
    row |= _spread("data_wait_fraction", figures.data_wait if figures else None)
    row |= {
        "first_batch_s": figures.first_batch_s if figures else None,
        "loader_ceiling_images_per_s": figures.loader_ceiling if figures else None,
        "compute_ceiling_images_per_s": figures.compute_ceiling if figures else None,
        "bound_by": figures.bound if figures else None,
        "share_of_peak_fraction": figures.peak_share if figures else None,
        "memory_bytes_per_rank": figures.memory_bytes if figures else None,
        "loss": figures.loss if figures else None,
        "busy_fraction": figures.busy if figures else None,
        "contaminated": figures.is_contaminated if figures else None,
        **{name: efficiency.get(key) for name, key in _AGAINST.items()},
        "attempts": record.attempts if record else None,
        "seconds": record.seconds if record else None,
        "exit_code": record.exit_code if record else None,
        "job": record.job if record else None,
        "host": record.host if record else None,
        "code": record.code if record else None,
        "commit": record.record.get("commit") if record else None,
    }
    return row


def _spread(name: str, values: Any) -> Mapping[str, float | None]:
    ends = ("median", "low", "high")
    found = [getattr(values, end) if values is not None else None for end in ends]
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def _safe(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return value
    text = clean(plain(value))
    return f"'{text}" if text.startswith(_FORMULA) else text
