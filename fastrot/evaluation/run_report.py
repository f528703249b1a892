"""A result for people: measured beside the random initialisation and the published number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastrot.evaluation.published import lookup
from fastrot.evaluation.result import Result


@dataclass(frozen=True)
class EvalReport:
    """A result, and where it is.

    Attributes:
        result: what was measured.
        folder: with ``result.json``.
    """

    result: Result
    folder: Path
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """What ``result.json`` holds."""
        return self.result.to_json()

    def show(self, console: Console) -> None:
        """Print a table, and what to know before comparing."""
        result = self.result
        table = Table(title=f"{result.protocol} ({result.label})", title_justify="left")
        columns = ["", "metric", "measured", "random init", "published"]
        if result.random is None:
            columns.remove("random init")
        for column in columns:
            table.add_column(column, justify="left" if column in ("", "metric") else "right")
        random = {(s.name, s.metric): s.value for s in result.random or ()}
        for score in result.scores:
            row = lookup(result.protocol, score.name, score.metric)
            other = random.get((score.name, score.metric))
            cells = [score.name, score.metric, f"{score.value:.2f}"]
            if result.random is not None:
                cells.append("" if other is None else f"{other:.2f}")
            table.add_row(*cells, "" if row is None else f"{row.value:.2f}")
        console.print(table)
        lines = [f"weights: {result.weights['source']}"]
        lines += [f"not the protocol's own setting: {change}" for change in result.changed]
        lines += [*result.notes, f"{self.folder / 'result.json'}"]
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
