"""Report of a benchmark whose points share their conditions: JSON, records, and a table."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rich import box
from rich.console import Console
from rich.table import Table

from fastrot.benchmarks.common.harness import SavedReport, key_fields


@dataclass(frozen=True, kw_only=True)
class PointsReport(SavedReport):
    """Points that were measured in one run.

    Attributes:
        bench: name of the benchmark.
        settings: settings of the benchmark.
        record: the machine, the versions, the command.
        data: the data that was read; empty: none.
        left_out: what could not run, and why.
    """

    bench: ClassVar[str]
    settings: Mapping[str, Any]
    record: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """Return 0: the benchmark has no goal that it could miss."""
        return 0

    @abstractmethod
    def plain_points(self) -> list[dict[str, Any]]:
        """Return the points as plain values, each with everything that its record needs."""

    @abstractmethod
    def show_points(self, console: Console) -> None:
        """Print the points in at most 80 columns."""

    def summary(self) -> dict[str, Any]:
        """Return plain values about all points together."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Return one object of plain values."""
        return {
            "bench": self.bench,
            "left_out": dict(self.left_out),
            **self.summary(),
            "points": self.plain_points(),
            **self._conditions(),
        }

    def records(self) -> list[dict[str, Any]]:
        """Return one self-contained object per point, for a results file."""
        shared = {"bench": self.bench, **key_fields(self.record)}
        return [{**shared, **point, **self._conditions()} for point in self.plain_points()]

    def show(self, console: Console) -> None:
        """Print the report."""
        for each in (self.data, self.settings):
            if each:
                say(console, "  ".join(f"{key} {value}" for key, value in each.items()))
        self.show_points(console)
        for name, why in self.left_out.items():
            say(console, f"left out: {name}: {why}")

    def _conditions(self) -> dict[str, Any]:
        conditions = {"settings": dict(self.settings), "record": dict(self.record)}
        return conditions | ({"data": dict(self.data)} if self.data else {})


def say(console: Console, text: str) -> None:
    """Print a line without markup or wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def empty_table(title: str, *heads: str, names: int = 1, padding: int = 1) -> Table:
    """Return a table without rows.

    Args:
        title: title of the table.
        heads: headings of the columns.
        names: number of leading columns that hold names, left-aligned; the others hold numbers.
        padding: spaces between columns.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
                  padding=(0, padding), collapse_padding=True)  # fmt: skip
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number >= names else "left", no_wrap=True)
    return table
