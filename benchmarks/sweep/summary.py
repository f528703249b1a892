"""Summary of a sweep so far, as text and as JSON; ``fastrot report`` gives more details."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastrot.benchmarks.common.points_report import say
from fastrot.benchmarks.sweep.record import CellRecord


def outcome(record: CellRecord) -> str:
    """Return the rates of a cell, or why it has none."""
    if record.measured is None:
        return f"failed: {record.reason}"
    images = statistics.median(record.measured.images_per_s)
    return f"{images:,.1f} images/s, {images * record.measured.views:,.1f} views/s"


@dataclass(frozen=True)
class SweepSummary:
    """State of a sweep after a command."""

    name: str  # name of the sweep
    folder: Path  # folder with its records
    cells: Mapping[str, str]  # title of each cell, by key
    records: Mapping[str, CellRecord]  # records by key, for cells that have one
    skipped: int  # number of cells that were measured before
    known: int  # number of cells that had failed on their own before and were not tried again
    measured: int  # number of cells that this command measured, or tried to
    dry_run: bool  # whether the command was to measure nothing

    @property
    def failed(self) -> int:
        """Return the number of cells that failed."""
        return sum(record.status == "failed" for record in self.records.values())

    @property
    def exit_code(self) -> int:
        """Return 1 if a cell failed, so that a script notices, otherwise 0."""
        return 1 if self.failed and not self.dry_run else 0

    def to_json(self) -> dict[str, Any]:
        """Return one object of plain values."""
        return {
            "sweep": self.name,
            "folder": str(self.folder),
            "cells": len(self.cells),
            "done": len(self.records) - self.failed,
            "failed": self.failed,
            "skipped": self.skipped,
            "known_to_fail": self.known,
            "measured": self.measured,
            "dry_run": self.dry_run,
            "records": [asdict(record) for record in self.records.values()],
        }

    def show(self, console: Console) -> None:
        """Print the summary."""
        table = Table("cell", "outcome", "starts", title=f"sweep {self.name}")
        for key, title in self.cells.items():
            record = self.records.get(key)
            table.add_row(
                title,
                outcome(record) if record else "to be measured",
                str(record.attempts) if record else "",
            )
        console.print(table)
        say(
            console,
            f"{len(self.cells)} cells: {len(self.records) - self.failed} done, {self.failed} "
            f"failed; report: fastrot report {self.folder}",
        )
