"""Decides which cells of a sweep must still be measured, from the records in its folder."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastrot.benchmarks.sweep.record import CellRecord, read_cell
from fastrot.benchmarks.sweep.settings import Cell
from fastrot.errors import BadDataError

SUPERSEDED = "superseded"
# Exit codes whose cause is the machine or another process, not the cell: a lost rank, a failed
# disk, a preemption.
_CHANCE = {69, 74, 75}


@dataclass(frozen=True)
class PendingCells:
    """The cells of a sweep, by key."""

    cells: Mapping[str, Cell]  # all of them, in the order of the grid
    done: Mapping[str, CellRecord]  # records of cells that are already measured
    known: Mapping[str, CellRecord]
    """Records of cells that failed on their own and would fail again."""
    missing: Mapping[str, CellRecord]
    """Records of cells that failed by chance and will be measured again."""

    @property
    def to_measure(self) -> list[str]:
        """Return the keys of the cells still to be measured, in the order of the grid."""
        return [key for key in self.cells if key not in self.done and key not in self.known]


def would_fail_again(record: CellRecord) -> bool:
    """Return whether a failure is the cell's own, by its exit code.

    A cell that was killed or ran out of time may succeed the next time.
    """
    return (record.exit_code or 0) > 0 and record.exit_code not in _CHANCE


def find_pending(
    folder: Path, cells: Mapping[str, Cell], *, retry_failed: bool, look_only: bool
) -> PendingCells:
    """Read the records in the folder; set those of other code, settings or machines aside.

    Args:
        folder: folder of the sweep.
        cells: all cells, by key.
        retry_failed: also measure again cells that failed on their own.
        look_only: do not change the folder.
    """
    if not look_only:
        _put_aside(folder, cells)
    done: dict[str, CellRecord] = {}
    known: dict[str, CellRecord] = {}
    missing: dict[str, CellRecord] = {}
    for key in cells:
        path = folder / "cells" / f"{key}.json"
        if not path.is_file():
            continue
        try:
            record = read_cell(path)
        except BadDataError:
            continue  # damaged: measuring the cell again replaces it
        if record.status == "done":
            done[key] = record
        elif would_fail_again(record) and not retry_failed:
            known[key] = record
        else:
            missing[key] = record
    return PendingCells(cells, done, known, missing)


def _put_aside(folder: Path, cells: Mapping[str, Cell]) -> None:
    """Move records of other cells out of ``cells``, which reports read, and wanted ones back in."""
    inside, outside = folder / "cells", folder / "cells" / SUPERSEDED
    for path in inside.glob("*.json"):
        if path.stem not in cells:
            outside.mkdir(exist_ok=True)
            path.replace(outside / path.name)
    for key in cells:
        with contextlib.suppress(FileNotFoundError):
            if not (inside / f"{key}.json").exists():
                (outside / f"{key}.json").replace(inside / f"{key}.json")
