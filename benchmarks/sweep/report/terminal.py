"""A sweep's differences from its baseline on the terminal, within 80 columns."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastrot.benchmarks.common.points_report import say
from fastrot.benchmarks.sweep.report.compare import AS_BEFORE, Comparison
from fastrot.report.html.text import clean

_MOST_ROWS = 40


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print what differs from a baseline, regressions first, and the number of cells."""
    for line in comparison.lines:
        say(console, line)
    changed = [cell.row() for cell in comparison.ordered() if cell.outcome not in AS_BEFORE]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for head in ("vs. baseline", "ratio", "spread", "outcome", "notes"):
        is_number = head in ("ratio", "spread")
        table.add_column(head, justify="right" if is_number else "left", no_wrap=is_number,
                         overflow="fold")  # fmt: skip
    for name, outcome, ratio, spread, *_, note in changed[:_MOST_ROWS]:
        table.add_row(*map(escape, (name, ratio, spread, outcome, clean(note, 160))))
    if changed:
        console.print(table)
    if len(changed) > _MOST_ROWS:
        say(console, f"{len(changed) - _MOST_ROWS} more cells: see report.html")
    say(console, f"{comparison.baseline}: {comparison.summary}")
