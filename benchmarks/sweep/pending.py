"""Which cells of a sweep are still to be measured, by what its folder already holds."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastrot.benchmarks.sweep.record import CellRecord, read_cell
from fastrot.benchmarks.sweep.settings import Cell
from fastrot.errors import BadDataError

SUPERSEDED = "superseded"
# Exit codes that tell of the machine or of other processes, not of the cell: a lost rank, a
# failed disk, a preemption.
_CHANCE = {69, 74, 75}


@dataclass(frozen=True)
class PendingCells:
    """The cells of a sweep, by key.

    Attributes:
        cells: all of them, in the order of the grid.
        done: records of those that are measured already.
        known: records of those that failed by themselves, and would fail again.
        missing: records of those that were tried and ended by chance; they are to be measured
            again.
    """

    cells: Mapping[str, Cell]
    done: Mapping[str, CellRecord]
    known: Mapping[str, CellRecord]
    missing: Mapping[str, CellRecord]

    @property
    def to_measure(self) -> list[str]:
        """Keys of the cells that are left, in the order of the grid."""
        return [key for key in self.cells if key not in self.done and key not in self.known]


def would_fail_again(record: CellRecord) -> bool:
    """Whether a failure is the cell's own: it left with an exit code that says so.

    One that was killed, or ran out of time, may have been unlucky.
    """
    return (record.exit_code or 0) > 0 and record.exit_code not in _CHANCE


def find_pending(
    folder: Path, cells: Mapping[str, Cell], *, retry_failed: bool, look_only: bool
) -> PendingCells:
    """Look what the folder holds; records of other code, settings or machines are put aside.

    Args:
        folder: of the sweep.
        cells: by key.
        retry_failed: measure again what failed by itself.
        look_only: leave the folder as it is.
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
            continue  # damaged: measured anew, which replaces it
        if record.status == "done":
            done[key] = record
        elif would_fail_again(record) and not retry_failed:
            known[key] = record
        else:
            missing[key] = record
    return PendingCells(cells, done, known, missing)


def _put_aside(folder: Path, cells: Mapping[str, Cell]) -> None:
    """A report reads all of ``cells``: what is no cell of this sweep now waits elsewhere."""
    inside, outside = folder / "cells", folder / "cells" / SUPERSEDED
    for path in inside.glob("*.json"):
        if path.stem not in cells:
            outside.mkdir(exist_ok=True)
            path.replace(outside / path.name)
    for key in cells:
        with contextlib.suppress(FileNotFoundError):
            if not (inside / f"{key}.json").exists():
                (outside / f"{key}.json").replace(inside / f"{key}.json")
