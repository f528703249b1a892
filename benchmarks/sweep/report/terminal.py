"""A sweep on the terminal, within 80 columns: its cells, and differences from a baseline."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastrot.benchmarks.sweep.report.axes import short_names
from fastrot.benchmarks.sweep.report.cells import Sweep
from fastrot.benchmarks.sweep.report.compare import AS_BEFORE, Comparison
from fastrot.benchmarks.sweep.report.table import WHY, cell_rows, columns
from fastrot.report.html.text import clean

_MOST_ROWS = 40
_NUMBERS = ("views/s", "±", "data wait")


def show_cells(sweep: Sweep, console: Console) -> None:
    """Print the cells; if there are too many, the fastest."""
    fastest = sorted(sweep.cells, key=lambda cell: -cell.views_per_s)[:_MOST_ROWS]
    keys = {cell.key for cell in fastest}
    rows = [row for cell, row in zip(sweep.cells, cell_rows(sweep, []), strict=True)
            if cell.key in keys]  # fmt: skip
    fixed = {name for axis, name in short_names(sweep.axes).items() if axis not in sweep.varying}
    place, known = columns(sweep, rows)
    heads = [head for head in place if head not in fixed or len(place) == 1]
    heads += [head for head in _NUMBERS if head in known]
    texts = [[*(row.get(head, "") for head in heads), row.get("bound by") or clean(row[WHY], 160)]
             for row in rows]  # fmt: skip
    _show(console, [*heads, "bound by"], _NUMBERS, texts)
    _say_more(console, len(sweep.cells) - len(rows), "report.html, report.csv")


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print what differs from a baseline, regressions first, and the number of cells."""
    for line in comparison.lines:
        say(console, line)
    changed = [cell.row() for cell in comparison.ordered() if cell.outcome not in AS_BEFORE]
    heads = ["vs. baseline", "ratio", "spread", "outcome", "notes"]
    texts = [[name, ratio, spread, outcome, clean(note, 160)]
             for name, outcome, ratio, spread, *_, note in changed[:_MOST_ROWS]]  # fmt: skip
    _show(console, heads, ("ratio", "spread"), texts)
    _say_more(console, len(changed) - len(texts), "report.html")
    say(console, f"{comparison.baseline}: {comparison.summary}")


def say(console: Console, text: str) -> None:
    """Print a line without markup or wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _say_more(console: Console, number: int, where: str) -> None:
    if number:
        say(console, f"{number} more cells: see {where}")


def _show(
    console: Console, heads: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for head in heads:
        is_number = head in numbers
        table.add_column(head, justify="right" if is_number else "left", no_wrap=is_number,
                         overflow="fold")  # fmt: skip
    for row in rows:
        table.add_row(*map(escape, row))
    if rows:
        console.print(table)
