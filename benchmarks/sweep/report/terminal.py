"""A sweep on the terminal, within 80 columns: its cells, and what differs from a baseline."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastrot.benchmarks.sweep.report.cells import ReportCell, Sweep, place, value
from fastrot.benchmarks.sweep.report.compare import REGRESSIONS, Comparison
from fastrot.benchmarks.sweep.report.tables import half
from fastrot.report.html.text import clean, short

_MOST_ROWS, _AXES_WIDTH = 40, 26
_SHORTER = {"batch per rank": "batch", "global batch": "batch", "resolution": "px"}


def show_cells(sweep: Sweep, console: Console) -> None:
    """Print the cells; of many, the fastest and those without figures."""
    shown = _shown(sweep.cells)
    names, axes = sweep.names, sweep.names.varying
    columns = axes if axes and sum(_width(sweep, axis) for axis in axes) <= _AXES_WIDTH else None
    many = len(sweep.environments) > 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    if columns is None:
        table.add_column("cell", overflow="fold", min_width=12, ratio=1)
    for axis in columns or ():
        table.add_column(_head(sweep, axis), no_wrap=True)
    heads = ("in", "views/s", "±", "a rank", "p50 ms", "waits")
    hidden = set() if many else {"in"}
    if all(figures.ranks == 1 for _, figures in sweep.measured()):
        hidden.add("a rank")
    for head in heads:
        if head not in hidden:
            table.add_column(head, justify="right", no_wrap=True)
    table.add_column("bound by, or why not", overflow="fold", ratio=2, min_width=18)
    for cell in shown:
        where = (
            [names.cell(cell.axes) or clean(cell.key, 16)]
            if columns is None
            else [value(cell.axes[axis]) if axis in cell.axes else "" for axis in columns]
        )
        *numbers, words = _row(cell)
        kept = [n for head, n in zip(heads, numbers, strict=True) if head not in hidden]
        table.add_row(*map(escape, [*where, *kept, words]))
    if shown:
        console.print(table)
    if len(shown) < len(sweep.cells):
        _line(console, f"{len(sweep.cells) - len(shown)} more cells: see report.html, report.csv")


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print what is not as in a baseline, regressions first, and how many cells are."""
    for line in comparison.lines:
        _line(console, line)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("beside the baseline", overflow="fold", ratio=3)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("spread", justify="right", no_wrap=True)
    table.add_column("outcome", overflow="fold", ratio=2)
    table.add_column("notes", overflow="fold", ratio=2)
    for each in comparison.changes[:_MOST_ROWS]:
        ratio, span = "", ""
        if each.ratio is not None:
            ratio = f"{each.ratio.median:.3f}"
            span = f"{each.ratio.low:.3f}-{each.ratio.high:.3f}"
        outcome = f"✗ {each.outcome}" if each.outcome in REGRESSIONS else each.outcome
        words = (place(each.axes), ratio, span, outcome, clean(each.note, 160))
        table.add_row(*map(escape, words))
    if comparison.changes:
        console.print(table)
    if len(comparison.changes) > _MOST_ROWS:
        _line(console, f"{len(comparison.changes) - _MOST_ROWS} more cells: see report.html")
    _line(console, f"{comparison.baseline}: {comparison.summary}")


def _head(sweep: Sweep, axis: str) -> str:
    name = sweep.names.short(axis)
    return _SHORTER.get(name, name)


def _width(sweep: Sweep, axis: str) -> int:
    """Columns of the terminal that an axis takes, with the space behind it."""
    return (
        max(len(text) for text in (_head(sweep, axis), *map(value, sweep.names.values[axis]))) + 1
    )


def _shown(cells: Sequence[ReportCell]) -> list[ReportCell]:
    """At most as many as fit on a screen or two, in their order: the fastest, and what failed."""
    if len(cells) <= _MOST_ROWS:
        return list(cells)
    rates = {cell.key: cell.figures.views_per_s.median for cell in cells if cell.figures}
    fastest = sorted(rates, key=lambda key: -rates[key])
    others = [cell.key for cell in cells if cell.figures is None]
    kept = {*others[: max(_MOST_ROWS // 2, _MOST_ROWS - len(fastest))]}
    kept |= {*fastest[: _MOST_ROWS - len(kept)]}
    return [cell for cell in cells if cell.key in kept]


def _row(cell: ReportCell) -> list[str]:
    figures = cell.figures
    if figures is None:
        words = cell.reason if cell.reason == cell.status else f"{cell.status}: {cell.reason}"
        return [""] * 6 + [clean(words, 160)]
    wait = figures.data_wait
    median = figures.step_ms.get("p50")
    busy = " (contaminated)" if figures.is_contaminated else ""
    return [
        cell.environment,
        short(figures.views_per_s.median, 3),
        half(figures.views_per_s),
        short(figures.views_per_s_rank.median, 3),
        "" if median is None else short(median, 3),
        "" if wait is None else f"{100 * wait.median:.0f} %",
        f"{figures.bound}{busy}",
    ]


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
