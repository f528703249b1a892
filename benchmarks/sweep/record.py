"""The files of each cell of a sweep: its job, and what it leaves, a record.

Each is one JSON file, written at once or not at all.

The folder of a sweep::

    sweep.yaml            what was asked for, resolved; --data and --set; key and axes of each cell
    cells/<key>.json      one record a cell, done or failed
    cells/<key>.log       what its processes said
    cells/superseded/     records of other code, settings or machines; not read by reports
    jobs/                 what submitit keeps
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
    """What a cell measured once it was warm; None where it could not be.

    Attributes:
        ranks: processes that trained together, one a GPU (or one a share of the CPU).
        nodes: machines.
        global_batch: source images a step over all ranks.
        views: of an image.
        images_per_s: source images/s over all ranks, one value a repeat.
        steps_ms: p50, p95 and p99 of a step, milliseconds, over all repeats.
        data_wait: share of the time that steps waited for data, in [0, 1], one value a repeat.
        first_batch_s: seconds from the start of the loader to its first batch.
        loader_images_per_s: of the loader alone over all ranks.
        compute_images_per_s: of the step alone over all ranks, its batches made already.
        flops_per_view: of a training step, multiply and add counted apart.
        peak_flops: dense peak of one rank's device in the precision used, FLOP/s.
        memory_bytes: most of a rank: of the GPU, or resident without one.
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
        axes: where in the grid it lies, e.g. ``{"data.workers": 2, "ranks": 1}``.
        config: the whole resolved configuration of the run, as plain values.
        code: hash of the sources that ran, or the commit.
        host: what tells machines apart, without their names: processor, cores, GPUs.
        status: ``done`` or ``failed``.
        reason: why it failed, one line; None if it did not.
        exit_code: of the cell's process; negative: the signal that killed it.
        attempts: times it was started, requeues included.
        seconds: of the last attempt.
        job: id of the cluster's job, or None.
        record: ``machine_record()`` of where it ran: fingerprint of the environment.
        measured: None if it failed.
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
        """Write it into the ``cells`` of a sweep's folder; an older record of the key goes."""
        path = folder / "cells" / f"{self.key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))
        return path


_READER = TypeAdapter(CellRecord)


def read_cell(path: Path) -> CellRecord:
    """Read one record.

    Raises:
        BadDataError: the file is no record of a cell.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _no_record(path, f"{type(error).__name__}: {error}") from error
    return cell_of_json(tree, path)


def cell_of_json(tree: Any, path: Path) -> CellRecord:
    """Make a record out of the plain values that ``asdict`` made of it.

    Args:
        tree: of one record; fields that are not known are left out.
        path: the file they are from.

    Raises:
        BadDataError: a field is missing or of the wrong type, or the format is another.
    """
    if not isinstance(tree, dict):
        raise _no_record(path, "not an object")
    if (version := tree.get("format")) != FORMAT:
        raise BadDataError(
            f"{path}: format {version}, and this fastrot reads format {FORMAT}; measure the cell "
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
    """All records of a sweep's folder, in the order of their axes.

    Raises:
        BadDataError: one of them is damaged.
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
    return CellJob(**json.loads(Path(path).read_text(encoding="utf-8")))
