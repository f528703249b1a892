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
from fastrot.errors import BadDataError

FORMAT = 1


@dataclass(frozen=True)
class Measured:
    """Measurements of a cell after its warm-up; None: could not be measured.

    Attributes:
        ranks: processes that trained together, one per GPU (or per share of the CPU).
        nodes: number of machines.
        global_batch: source images per step over all ranks.
        views: views per image.
        images_per_s: source images/s over all ranks, one value per repeat.
        steps_ms: p50, p95 and p99 of a step, milliseconds, over all repeats.
        data_wait: share of the time that steps waited for data, in [0, 1], one value per repeat.
        first_batch_s: seconds from the start of the loader to its first batch.
        loader_images_per_s: rate of the loader alone, over all ranks.
        compute_images_per_s: rate of the step alone, with ready batches, over all ranks.
        flops_per_view: FLOPs of a training step; a multiply-add counts as two.
        peak_flops: dense peak of one rank's device in the precision used, FLOP/s.
        memory_bytes: peak of the rank that used the most: on the GPU, or resident without one.
        loss: mean over the measured steps.
        busy: share of this machine's cores that other programs used meanwhile, in [0, 1].
    """

    ranks: int
    nodes: int
    global_batch: int
    views: int
    images_per_s: tuple[float, ...]
    steps_ms: Mapping[str, float]
    data_wait: tuple[float, ...]
    first_batch_s: float | None
    loader_images_per_s: float | None
    compute_images_per_s: float | None
    flops_per_view: float | None
    peak_flops: float | None
    memory_bytes: int | None
    loss: float | None
    busy: float | None


@dataclass(frozen=True)
class CellRecord:
    """One cell of a sweep.

    Attributes:
        key: hash of configuration, code and host: the name of its files.
        sweep: name of the sweep.
        kind: what is measured: ``train`` (the whole trainer) or ``loader`` (the loader alone).
        axes: its point in the grid, e.g. ``{"data.workers": 2, "ranks": 1}``.
        config: the whole resolved configuration of the run, as plain values.
        code: hash of the sources that ran, or the commit.
        host: what distinguishes machines, without their names: processor, cores, GPUs.
        status: ``done`` or ``failed``.
        reason: why it failed, one line; None: it did not fail.
        exit_code: exit code of the cell's process; negative: the signal that killed it.
        attempts: number of starts, including requeues.
        seconds: duration of the last attempt.
        job: id of the cluster's job, or None.
        record: ``machine_record()`` of the machine: fingerprint of the environment.
        measured: the measurements; None: it failed.
    """

    key: str
    sweep: str
    kind: Literal["train", "loader"]
    axes: Mapping[str, Any]
    config: Mapping[str, Any]
    code: str
    host: str
    status: Literal["done", "failed"]
    reason: str | None
    exit_code: int | None
    attempts: int
    seconds: float
    job: str | None
    record: Mapping[str, Any]
    measured: Measured | None
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
    """One cell to be measured.

    Attributes:
        key: name of its files.
        sweep: name of the sweep.
        kind: what is measured.
        axes: its point in the grid.
        config: configuration of its run, resolved except for ``auto``.
        ranks: number of processes over all machines.
        nodes: number of machines.
        repeats: number of measurements.
        seconds: length of each measurement.
        warm_up_steps: steps before the first measurement.
        deadline_s: maximum duration of the whole cell.
        time_min: Slurm's time limit, minutes.
        signal_delay_s: seconds before that limit at which Slurm sends its signal.
        attempts: number of earlier starts.
        code: hash of the sources.
        folder: folder of the sweep.
        command: command that requested it, without private paths.
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
        """Return the file for the output of its processes."""
        return Path(self.folder) / "cells" / f"{self.key}.log"

    def save(self) -> Path:
        """Write the job where the measuring process reads it, and return that path."""
        path = Path(self.folder) / "jobs" / f"{self.key}.json"
        write_json(path, asdict(self))
        return path


def read_job(path: str | Path) -> CellJob:
    """Read a job from a file that ``save`` has written."""
    return CellJob(**json.loads(Path(path).read_text(encoding="utf-8")))
