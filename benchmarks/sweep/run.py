"""``fastrot bench sweep``: measures every cell of a grid once, here or on a cluster.

A cell that fails is recorded with the reason. Cells already recorded for the same settings, code
and machine are not measured again, so the same command resumes an interrupted sweep.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from fastrot.benchmarks.common.harness import Countdown, published_command
from fastrot.benchmarks.sweep.cell import TakenAway, debug_cell, run_cell
from fastrot.benchmarks.sweep.key import cell_key, code_hash, host_name, slurm_place
from fastrot.benchmarks.sweep.pending import PendingCells, find_pending
from fastrot.benchmarks.sweep.record import CellJob, CellRecord, read_cell
from fastrot.benchmarks.sweep.settings import (
    Cell,
    SweepSettings,
    cells_of,
    load_sweep,
    split_overrides,
)
from fastrot.benchmarks.sweep.slurm import SlurmSweep
from fastrot.benchmarks.sweep.summary import SweepSummary, outcome
from fastrot.distributed.slurm import require_slurm
from fastrot.errors import PreemptedError, UsageError
from fastrot.system.files import write_atomic
from fastrot.system.lock import RunLock

CLUSTERS = ("slurm", "local", "debug")
_QUIET_SECONDS = 30.0  # between two lines about waiting jobs


@dataclass(frozen=True)
class SweepRequest:
    """Options of ``fastrot bench sweep``."""

    sweep: str  # YAML file, or name of a shipped sweep
    data: Path | None = None  # images to use instead of the recipe's
    out: Path | None = None  # folder of the sweep; None: ``runs/`` and its name
    cluster: str = "local"
    """``slurm``: a job array. ``local``: here, one cell after the other, one process per rank.
    ``debug``: in this process, if a cell has one rank."""
    overrides: Sequence[str] = ()  # ``key=value``
    dry_run: bool = False  # measure nothing
    retry_failed: bool = False  # also measure again cells that failed on their own
    progress: bool = True  # report progress on standard error


def run_sweep(request: SweepRequest) -> SweepSummary:
    """Measure the missing cells of a sweep.

    Raises:
        UsageError: the sweep or an option is wrong.
        MismatchError: another process is writing to the same folder.
        PreemptedError: a signal stopped the sweep; finished cells are kept.
    """
    if request.cluster not in CLUSTERS:
        raise UsageError(f"--cluster={request.cluster!r}: choose {', '.join(CLUSTERS)}")
    own, cell_overrides = split_overrides(request.overrides)
    settings = load_sweep(request.sweep, own)
    cells = cells_of(settings, data=request.data, overrides=cell_overrides)
    _check_data(cells)
    if request.cluster == "slurm":
        require_slurm()
        _check_gpus(settings, cells)
    folder = (request.out or Path("runs") / settings.name).absolute()
    with ExitStack() as stack:
        if not request.dry_run:
            for each in (folder, folder / "cells", folder / "jobs"):
                each.mkdir(parents=True, exist_ok=True)
            stack.enter_context(RunLock(folder / "sweep.lock", what=f"the sweep in {folder}"))
        return _Sweep(request, settings, cells, folder).run()


def _check_data(cells: Sequence[Cell]) -> None:
    """Check that the data exists before the first cell; otherwise all would fail, one by one."""
    for named in dict.fromkeys(str(cell.config.data.train) for cell in cells):
        if not named.startswith("embedded:") and "{" not in named and not Path(named).exists():
            raise UsageError(f"{named}: no such file or folder; check --data")


def _check_gpus(settings: SweepSettings, cells: Sequence[Cell]) -> None:
    most = settings.slurm.gpus_per_node
    for cell in cells:
        if most is not None and cell.ranks // cell.nodes > most:
            raise UsageError(
                f"sweep {settings.name}: {cell.ranks} ranks on {cell.nodes} nodes need "
                f"{cell.ranks // cell.nodes} GPUs each, but slurm.gpus_per_node={most}; raise it, "
                "or exclude the cell"
            )


class _Sweep:
    """One command's work on a sweep."""

    def __init__(
        self,
        request: SweepRequest,
        settings: SweepSettings,
        cells: Sequence[Cell],
        folder: Path,
    ) -> None:
        self._request, self._settings, self._folder = request, settings, folder
        self._code = code_hash()
        slurm = request.cluster == "slurm"
        self._place = slurm_place(settings.slurm) if slurm else host_name()
        keyed = {
            cell_key(settings, cell, code=self._code, place=self._place): cell for cell in cells
        }
        self._console = Console(stderr=True) if request.progress else None
        self._pending = find_pending(
            folder, keyed, retry_failed=request.retry_failed, look_only=request.dry_run
        )

    def run(self) -> SweepSummary:
        """Measure the cells, and return the summary."""
        pending, todo = self._pending, self._pending.to_measure
        self._countdown = Countdown(len(todo), console=self._console)
        self._tell(pending, todo)
        if self._request.dry_run:
            return self._summary(dry=True)
        self._write_sweep()
        jobs = {key: self._job(key, pending.cells[key]) for key in todo}
        for job in jobs.values():
            job.save()
        records = self._on_slurm(jobs) if self._request.cluster == "slurm" else self._here(jobs)
        failed = 0
        for record in records:
            failed += record.status == "failed"
            so_far = f"  ({failed} failed)" if failed else ""
            self._countdown.step(f"{pending.cells[record.key].title}: {outcome(record)}{so_far}")
        return self._summary(dry=False)

    def _write_sweep(self) -> None:
        """Write ``sweep.yaml``: the sweep, the options, and all cells, for a complete report."""
        cells = [{"key": key, "axes": dict(cell.axes)} for key, cell in self._pending.cells.items()]
        request = self._request
        given = {
            "data": None if request.data is None else str(request.data.absolute()),
            "overrides": list(request.overrides),
        }
        tree = {**self._settings.model_dump(mode="json"), "given": given, "cells": cells}
        write_atomic(self._folder / "sweep.yaml", yaml.safe_dump(tree, sort_keys=False).encode())

    def _tell(self, pending: PendingCells, todo: Sequence[str]) -> None:
        say = self._countdown.message
        say(f"sweep {self._settings.name}: {len(pending.cells)} cells in {self._folder}")
        if pending.done:
            say(f"{len(pending.done)} are already measured")
        for key, record in pending.known.items():
            say(
                "known to fail, not tried again (--retry-failed tries again): "
                f"{pending.cells[key].title}: {record.reason}"
            )
        for key, record in pending.missing.items():
            say(f"will be tried again: {pending.cells[key].title}: {record.reason}")
        say(f"{len(todo)} to measure")

    def _job(self, key: str, cell: Cell) -> CellJob:
        earlier = self._pending.missing.get(key)
        return CellJob(
            key=key,
            settings=self._settings,
            axes=dict(cell.axes),
            config=cell.config.model_dump(mode="json"),
            ranks=cell.ranks,
            nodes=cell.nodes,
            attempts=earlier.attempts if earlier else 0,
            code=self._code,
            folder=str(self._folder),
            command=published_command(),
        )

    def _here(self, jobs: Mapping[str, CellJob]) -> Iterator[CellRecord]:
        measure = debug_cell if self._request.cluster == "debug" else run_cell
        for key in jobs:
            try:
                measure(str(self._folder / "jobs" / f"{key}.json"))
            except TakenAway as error:
                raise PreemptedError(
                    f"{error}: the current cell has no record, all others are kept; the same "
                    "command continues"
                ) from None
            yield read_cell(self._folder / "cells" / f"{key}.json")

    def _on_slurm(self, jobs: Mapping[str, CellJob]) -> Iterator[CellRecord]:
        slurm = SlurmSweep(self._folder, jobs, self._place)
        say = self._countdown.message
        living = slurm.attach(list(jobs))
        if living:
            say(f"{len(living)} queued or running from before: job {', '.join(slurm.arrays)}")
        fresh = [key for key in jobs if key not in living]
        if fresh:
            yield from slurm.submit(fresh, self._settings.name, self._settings.slurm)
            if slurm.arrays:
                say(f"submitted {len(fresh)} cells: job {', '.join(slurm.arrays)}")
        if slurm.arrays:
            names = " ".join(slurm.arrays)
            say(
                f"logs: {self._folder / 'cells'}/*.log; see: squeue -u $USER; stop: scancel {names}"
            )
        try:
            yield from slurm.wait(_JobLines(say))
        except KeyboardInterrupt:
            say(
                f"interrupted; jobs continue: {', '.join(slurm.arrays)} (scancel stops them); the "
                "same command waits for them again"
            )
            raise

    def _summary(self, *, dry: bool) -> SweepSummary:
        records = {}
        for key in self._pending.cells:
            path = self._folder / "cells" / f"{key}.json"
            if path.is_file():
                records[key] = read_cell(path)
        return SweepSummary(
            name=self._settings.name,
            folder=self._folder,
            cells={key: cell.title for key, cell in self._pending.cells.items()},
            records=records,
            skipped=len(self._pending.done),
            known=len(self._pending.known),
            measured=0 if dry else len(self._pending.to_measure),
            dry_run=dry,
        )


class _JobLines:
    """Prints a line about the jobs when their state changes, or after a long silence."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last = ""
        self._at = -math.inf

    def __call__(self, running: int, waiting: int, why: str) -> None:
        """Report the number of running and of waiting jobs, and Slurm's reason."""
        line = f"{running} running, {waiting} waiting" + (f" ({why})" if why else "")
        if line != self._last or time.monotonic() - self._at > _QUIET_SECONDS:
            self._last, self._at = line, time.monotonic()
            self._say(line)
