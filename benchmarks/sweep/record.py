"""The files of each cell of a sweep: its job and its record.

Each is one JSON file, written atomically.

The folder of a sweep::

    sweep.yaml            the sweep, resolved; --data and --set; key and axes of each cell
    cells/<key>.json      one record per cell, done or failed
    cells/<key>.log       output of its processes
    cells/superseded/     records of other code, settings or machines; not read by reports
    jobs/                 jobs, and files of submitit
    report.html  report.csv  report.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from fastrot.benchmarks.common.harness import write_json
from fastrot.benchmarks.sweep.settings import SweepSettings
from fastrot.errors import BadDataError

FORMAT = 1


@dataclass(frozen=True)
class Measured:
    """Measurements of a cell after its warm-up; None: could not be measured."""

    ranks: int  # processes that trained together, one per GPU (or per share of the CPU)
    nodes: int  # number of machines
    global_batch: int  # source images per step over all ranks
    views: int  # views per image
    images_per_s: tuple[float, ...]  # source images/s over all ranks, one value per repeat
    steps_ms: Mapping[str, float]  # p50, p95 and p99 of a step, milliseconds, over all repeats
    data_wait: tuple[float, ...]
    """Fraction of the time that steps waited for data, in [0, 1], one value per repeat."""
    first_batch_s: float | None  # seconds from the start of the loader to its first batch
    loader_images_per_s: float | None  # rate of the loader alone, over all ranks
    compute_images_per_s: float | None  # rate of the step alone, with ready batches, over all ranks
    flops_per_view: float | None  # FLOPs of a training step; a multiply-add counts as two
    peak_flops: float | None  # dense peak of one rank's device in the precision used, FLOP/s
    memory_bytes: int | None
    """Peak of the rank that used the most: on the GPU, or resident without one."""
    loss: float | None  # mean over the measured steps
    busy: float | None
    """Fraction of this machine's cores that other programs used meanwhile, in [0, 1]."""


@dataclass(frozen=True)
class CellRecord:
    """One cell of a sweep."""

    key: str  # hash of configuration, code and host: the name of its files
    sweep: str  # name of the sweep
    kind: Literal["train", "loader"]
    """What is measured: ``train`` (the whole trainer) or ``loader`` (the loader alone)."""
    axes: Mapping[str, Any]  # its point in the grid, e.g. ``{"data.workers": 2, "ranks": 1}``
    config: Mapping[str, Any]  # the whole resolved configuration of the run, as plain values
    code: str  # hash of the sources that ran, or the commit
    host: str  # what distinguishes machines, without their names: processor, cores, GPUs
    status: Literal["done", "failed"]  # ``done`` or ``failed``
    reason: str | None  # why it failed, one line; None: it did not fail
    exit_code: int | None  # exit code of the cell's process; negative: the signal that killed it
    attempts: int  # number of starts, including requeues
    seconds: float  # duration of the last attempt
    job: str | None  # id of the cluster's job, or None
    record: Mapping[str, Any]  # ``machine_record()`` of the machine: fingerprint of the environment
    measured: Measured | None  # the measurements; None: it failed
    format: int = field(default=FORMAT)

    def save(self, folder: Path) -> Path:
        """Write the record to ``cells`` in a sweep's folder, replacing an older one of this key."""
        path = folder / "cells" / f"{self.key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))
        return path


_READER = TypeAdapter(CellRecord)


def read_cell(path: Path) -> CellRecord:
    """Read one record.

    Raises:
        BadDataError: the file is not the record of a cell.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _no_record(path, f"{type(error).__name__}: {error}") from error
    return cell_of_json(tree, path)


def cell_of_json(tree: Any, path: Path) -> CellRecord:
    """Build a record from plain values, as made by ``asdict``.

    Args:
        tree: plain values of one record; unknown fields are ignored.
        path: file that they come from, for errors.

    Raises:
        BadDataError: a field is missing or of the wrong type, or the format is unknown.
    """
    if not isinstance(tree, dict):
        raise _no_record(path, "not an object")
    if (version := tree.get("format")) != FORMAT:
        raise BadDataError(
            f"{path}: format {version}, but this fastrot reads format {FORMAT}; measure the cell "
            "again"
        )
    try:
        return _READER.validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise _no_record(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _no_record(path: Path, why: str) -> BadDataError:
    return BadDataError(
        f"{path}: not the record of a cell ({why}); remove it, and `fastrot bench sweep` measures "
        "the cell again"
    )


def read_cells(folder: Path) -> list[CellRecord]:
    """Return all records in a sweep's folder, in the order of their axes.

    Raises:
        BadDataError: a record is damaged.
    """
    records = [read_cell(path) for path in sorted((folder / "cells").glob("*.json"))]
    return sorted(records, key=lambda record: json.dumps(record.axes, sort_keys=True))


@dataclass(frozen=True)
class CellJob:
    """One cell to be measured."""

    key: str  # name of its files
    settings: SweepSettings  # the sweep, which says how its cells are measured
    axes: Mapping[str, Any]  # its point in the grid
    config: Mapping[str, Any]  # configuration of its run, resolved except for ``auto``
    ranks: int  # number of processes over all machines
    nodes: int  # number of machines
    attempts: int  # number of earlier starts
    code: str  # hash of the sources
    folder: str  # folder of the sweep
    command: str  # command that requested it, without private paths

    @property
    def log(self) -> Path:
        """Return the file for the output of its processes."""
        return Path(self.folder) / "cells" / f"{self.key}.log"

    def save(self) -> Path:
        """Write the job where the measuring process reads it, and return that path."""
        path = Path(self.folder) / "jobs" / f"{self.key}.json"
        write_json(path, {**vars(self), "settings": self.settings.model_dump(mode="json")})
        return path


def read_job(path: str | Path) -> CellJob:
    """Read a job from a file that ``save`` has written."""
    tree = json.loads(Path(path).read_text(encoding="utf-8"))
    return CellJob(**{**tree, "settings": SweepSettings.model_validate(tree["settings"])})
