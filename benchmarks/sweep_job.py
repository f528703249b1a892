"""What the process that measures a cell is told: plain values in a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fastrot.benchmarks.harness import write_json


@dataclass(frozen=True)
class CellJob:
    """One cell to be measured.

    Attributes:
        key: name of its files.
        sweep: name of the sweep.
        kind: what is measured.
        axes: where it lies in the grid.
        config: of its run, resolved but for ``auto``.
        ranks: processes over all machines.
        nodes: machines.
        repeats: measurements.
        seconds: length of each.
        warm_up_steps: before the first.
        deadline_s: longest time of it all.
        time_min: Slurm's limit.
        signal_delay_s: so long before it Slurm sends its signal.
        attempts: times that it was started before.
        code: hash of the sources.
        folder: of the sweep.
        command: that asked for it, without private paths.
    """

    key: str
    sweep: str
    kind: Literal["train", "loader"]
    axes: Mapping[str, Any]
    config: Mapping[str, Any]
    ranks: int
    nodes: int
    repeats: int
    seconds: float
    warm_up_steps: int
    deadline_s: float
    time_min: int
    signal_delay_s: int
    attempts: int
    code: str
    folder: str
    command: str

    @property
    def log(self) -> Path:
        """What its processes say."""
        return Path(self.folder) / "cells" / f"{self.key}.log"

    def save(self) -> Path:
        """Write it where the process that measures will look."""
        path = Path(self.folder) / "jobs" / f"{self.key}.json"
        write_json(path, asdict(self))
        return path


def read_job(path: str | Path) -> CellJob:
    """The job in a file that ``save`` has written."""
    return CellJob(**json.loads(Path(path).read_text()))
