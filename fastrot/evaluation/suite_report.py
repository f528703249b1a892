"""A suite for people."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from fastrot.evaluation.suite import Suite
from fastrot.evaluation.suite_table import (
    number_cells,
    number_heads,
    shown_rows,
    suite_notes,
    suite_rows,
)


@dataclass(frozen=True)
class SuiteReport:
    """What ``fastrot eval suite`` prints.

    Attributes:
        suite: what was found.
    """

    suite: Suite
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """What ``suite.json`` holds."""
        return self.suite.to_json()

    def show(self, console: Console) -> None:
        """Print measured beside published, then what is to be known before comparing."""
        rows = shown_rows(suite_rows(self.suite.results))
        for (protocol, mode), group in groupby(rows, key=lambda row: (row.protocol, row.mode)):
            table = Table(title=f"{protocol} ({mode})", title_justify="left", min_width=60)
            for column in ("", "metric", *number_heads(rows)):
                table.add_column(column, justify="left" if column in ("", "metric") else "right")
            for row in group:
                table.add_row(row.name, row.metric, *number_cells(row, rows))
            console.print(table)
        lines = [
            f"{protocol}, augmented minus cached: {name} {value:+.2f} points"
            for protocol, gap in self.suite.gaps.items()
            for name, value in gap.items()
        ]
        lines += [f"not run: {name}: {why}" for name, why in self.suite.left_out.items()]
        lines += suite_notes(self.suite.results)
        lines += [f"{self.suite.folder / name}" for name in ("suite.json", "suite.md", "suite.csv")]
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
