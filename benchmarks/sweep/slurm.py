"""Runs the cells of a sweep as a job array of Slurm, through submitit, and collects their records.

submitit keeps its files in the sweep's ``jobs`` folder, among them a pickle of the name of each
cell's job file. ``jobs/submitted.json`` lists the queued or running cells for a later command.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from fastrot.benchmarks.common.harness import write_json
from fastrot.benchmarks.sweep.cell import failed_record, run_task
from fastrot.benchmarks.sweep.record import CellJob, CellRecord, read_cell
from fastrot.distributed.slurm import SubmissionError, SweepSlurmSettings, submit
from fastrot.distributed.slurm_jobs import JobState, job_states
from fastrot.errors import BadDataError

_POLL_SECONDS = 1.0
_ASK_SECONDS = 5.0  # between two queries of Slurm's controller, which many users share
_GRACE_SECONDS = 10.0  # until a record written on another machine is visible here


class SlurmSweep:
    """The jobs of a sweep.

    Args:
        folder: folder of the sweep, on a file system that all nodes share.
        jobs: jobs by key; their files are already written.
        place: host in the record of a cell that never ran.
    """

    def __init__(self, folder: Path, jobs: Mapping[str, CellJob], place: str) -> None:
        self._folder, self._jobs, self._place = folder, jobs, place
        self._file = folder / "jobs" / "submitted.json"
        self._ids: dict[str, str] = self._read()
        self._ended: dict[str, float] = {}
        self.states: dict[str, JobState] = {}

    def _read(self) -> dict[str, str]:
        try:
            tree = json.loads(self._file.read_text(encoding="utf-8"))
            return {key: str(job) for key, job in tree.items() if key in self._jobs}
        except (OSError, ValueError, AttributeError):
            return {}

    def attach(self, keys: Sequence[str]) -> list[str]:
        """Return the earlier command's queued or running cells, which are not submitted again."""
        earlier = {key: self._ids[key] for key in keys if key in self._ids}
        states = job_states(earlier.values())
        living = [key for key, job in earlier.items() if job in states and states[job].lives]
        self._ids = {key: self._ids[key] for key in living}
        return living

    def submit(
        self, keys: Sequence[str], name: str, settings: SweepSlurmSettings
    ) -> list[CellRecord]:
        """Submit cells, one array per number of nodes, because tasks of an array are alike.

        Returns:
            Records of the cells that Slurm refused.
        """
        refused: list[CellRecord] = []
        by_nodes = sorted(keys, key=lambda key: self._jobs[key].nodes)
        for nodes, group in groupby(by_nodes, key=lambda key: self._jobs[key].nodes):
            array = list(group)
            try:
                ids = submit(
                    settings,
                    run_task,
                    [(str(self._folder / "jobs" / f"{key}.json"),) for key in array],
                    folder=self._folder / "jobs",
                    name=f"fastrot-{name}",
                    nodes=nodes,
                    gpus_per_node=settings.gpus_per_node,
                    array_parallelism=settings.array_parallelism,
                )
            except SubmissionError as error:
                reason = f"submission refused: {error}"
                refused += [
                    failed_record(self._jobs[key], reason, host=self._place) for key in array
                ]
                continue
            self._ids |= dict(zip(array, ids, strict=True))
            write_json(self._file, self._ids)
        return refused

    @property
    def arrays(self) -> list[str]:
        """Return the ids of the queued or running jobs, without task numbers."""
        return sorted({job.partition("_")[0] for job in self._ids.values()})

    def wait(self, waiting: Callable[[int, int, str], None]) -> Iterator[CellRecord]:
        """Yield the records of the submitted cells as they arrive; waiting has no time limit.

        Args:
            waiting: called now and then with the numbers of running and waiting jobs, and why
                they wait.
        """
        asked = 0.0
        while self._ids:
            yield from self._written()
            if time.monotonic() - asked >= _ASK_SECONDS:
                asked = time.monotonic()
                self.states = job_states(self._ids.values())
                yield from self._lost()
                running = sum(state.state == "RUNNING" for state in self.states.values())
                why = {state.why for state in self.states.values() if state.state == "PENDING"}
                waiting(running, len(self._ids) - running, ", ".join(sorted(why - {""})))
            time.sleep(_POLL_SECONDS)

    def _written(self) -> Iterator[CellRecord]:
        for key, job in list(self._ids.items()):
            try:
                record = read_cell(self._folder / "cells" / f"{key}.json")
            except BadDataError:
                continue  # not written yet
            if record.job == job:
                yield self._forget(key, record)

    def _lost(self) -> Iterator[CellRecord]:
        """Yield failures for cells whose job has ended without a record."""
        now = time.monotonic()
        for key, job in list(self._ids.items()):
            state = self.states.get(job)
            if state is not None and state.lives:
                self._ended.pop(key, None)
                continue
            if now - self._ended.setdefault(key, now) < _GRACE_SECONDS:
                continue
            reason = "Slurm no longer knows its job" if state is None else state.reason
            record = failed_record(
                self._jobs[key],
                f"{reason}; there is no record",
                # The cell itself would have written a record, so it is tried again.
                code=state.code if state is not None and (state.code or 0) < 0 else None,
                job_id=job,
                host=self._place,
            )
            yield self._forget(key, record)

    def _forget(self, key: str, record: CellRecord) -> CellRecord:
        del self._ids[key]
        self._ended.pop(key, None)
        write_json(self._file, self._ids)
        return record
