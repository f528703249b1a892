"""Measures one cell: starts its ranks, waits for them with a deadline, and writes its record.

The same code runs in the process of a local sweep and in each task of Slurm's job array (one per
node). The record says how the cell ended. If Slurm takes the machine away, there is no record, and
Slurm starts the cell again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastrot.benchmarks.common.harness import machine_record
from fastrot.benchmarks.common.process_tree import busy_seconds, cpu_seconds
from fastrot.benchmarks.sweep.key import host_name
from fastrot.benchmarks.sweep.rank import RESULT, error_file, measured_result
from fastrot.benchmarks.sweep.record import CellJob, CellRecord, Measured, read_job
from fastrot.distributed.rank_process import rendezvous_of, start_rank
from fastrot.distributed.slurm_jobs import (
    SlurmTask,
    describe_code,
    requeue,
    seconds_left,
    slurm_task,
)
from fastrot.errors import FastrotError, PreemptedError, RankLostError
from fastrot.system.processes import Child, end_children, signals_noted

_POLL_SECONDS = 0.1
_FOLLOW_SECONDS = 15.0  # for the other ranks to end, once one has failed
_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
_WARNING_SECONDS = 90.0  # Slurm may send the signal of the time limit this much too early
_LAST_WORDS = 4096  # bytes at the end of a log that are read


class TakenAway(Exception):
    """Slurm ends this attempt, and starts the cell again or has cancelled it."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a cell ended."""

    reason: str | None  # why it failed, one line; None: it did not fail
    code: int | None
    """Exit code of the first rank that failed; negative: a signal; None: none failed."""
    result: Mapping[str, Any]  # contents of the main rank's result file


def run_cell(path: str) -> None:
    """Measure the cell that a job file describes, and write its record.

    Raises:
        TakenAway: Slurm wants the machine back; there is no record.
    """
    job = read_job(path)
    task = slurm_task() if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else None
    cores = os.sched_getaffinity(0)
    began, busy, own = time.monotonic(), busy_seconds(cores), cpu_seconds(os.getpid())
    with (
        signals_noted(_SIGNALS) as received,
        tempfile.TemporaryDirectory(prefix="fastrot-cell-") as folder,
    ):
        outcome = _run(job, path, task, Path(folder), received)
    seconds = time.monotonic() - began
    if task is not None and task.node:
        return  # the process on the first node writes the record
    others = (busy_seconds(cores) - busy) - (cpu_seconds(os.getpid()) - own)
    share = min(max(others / (seconds * len(cores)), 0.0), 1.0)
    save_record(job, outcome, seconds=seconds, busy=share, task=task)


def run_task(path: str) -> None:
    """Run ``run_cell`` as a task of a job; submitit calls this."""
    try:
        run_cell(path)
    except TakenAway as error:
        print(error, file=sys.stderr)
        sys.exit(PreemptedError.exit_code)


def save_record(
    job: CellJob, outcome: Outcome, *, seconds: float, busy: float | None, task: SlurmTask | None
) -> CellRecord:
    """Write the record of an attempt at a cell on this machine, and return it."""
    result = outcome.result
    measured = None
    if result:
        values = {**result["measured"], "busy": busy}
        for name in ("images_per_s", "data_wait"):
            values[name] = tuple(values[name])
        measured = Measured(**values)
    record = CellRecord(
        key=job.key,
        sweep=job.settings.name,
        kind=job.settings.kind,
        axes=job.axes,
        config=result.get("config", job.config),
        code=job.code,
        host=host_name(),
        status="failed" if outcome.reason else "done",
        reason=outcome.reason,
        exit_code=outcome.code,
        attempts=job.attempts + 1 + (task.restarts if task else 0),
        seconds=seconds,
        job=task.job if task else None,
        record={**result.get("record", machine_record()), "command": job.command},
        measured=None if outcome.reason else measured,
    )
    record.save(Path(job.folder))
    return record


def _run(
    job: CellJob, path: str, task: SlurmTask | None, scratch: Path, received: list[int]
) -> Outcome:
    local = job.ranks // job.nodes
    first = local * (task.node if task else 0)
    began = time.monotonic()
    with job.log.open("ab") as log:
        start = job.attempts + 1 + (task.restarts if task else 0)
        where = f", job {task.job}" if task else ""
        log.write(f"--- start {start} of {dict(job.axes)}{where}\n".encode())
        log.flush()
        ranks = {
            first + each: start_rank(
                [sys.executable, "-m", "fastrot.benchmarks.sweep.rank", path, str(scratch)],
                first + each,
                job.ranks,
                rendezvous_of(task, job.nodes, scratch / "store"),
                local_rank=each,
                local_size=local,
                output=log,
            )
            for each in range(local)
        }
        try:
            reason = _wait(job, ranks, received, task, began)
        finally:
            end_children(ranks.values())
    failed = {rank: child.returncode for rank, child in ranks.items() if child.returncode}
    if reason is not None:
        return Outcome(f"{reason}{_last_words(job)}", None, {})
    if failed:
        # A rank that only lost another one is not the cause.
        rank = min(failed, key=lambda each: (failed[each] == RankLostError.exit_code, each))
        return Outcome(_blame(job, scratch, rank, failed[rank]), failed[rank], {})
    if first:
        return Outcome(None, None, {})
    return Outcome(None, 0, json.loads((scratch / RESULT).read_text(encoding="utf-8")))


def _wait(
    job: CellJob,
    ranks: Mapping[int, Child],
    received: list[int],
    task: SlurmTask | None,
    began: float,
) -> str | None:
    """Wait until all ranks have exited or must stop; return why, unless a rank gives a reason.

    Raises:
        TakenAway: Slurm takes the machine away.
    """
    end = began + job.settings.deadline_s
    while True:
        codes = [child.poll() for child in ranks.values()]
        if None not in codes:
            return None
        if received:
            return _told(job, received[0], task, began)
        if any(codes):
            end = min(end, time.monotonic() + _FOLLOW_SECONDS)
        if time.monotonic() > end:
            return (
                None if any(codes) else f"not done within deadline_s={job.settings.deadline_s:g} s"
            )
        time.sleep(_POLL_SECONDS)


def _told(job: CellJob, number: int, task: SlurmTask | None, began: float) -> str:
    """Interpret a signal from Slurm; one before the time limit gives a reason to fail.

    Raises:
        TakenAway: the machine is needed for something else.
    """
    ran = time.monotonic() - began
    if number == signal.SIGUSR2 and task is not None:
        left = seconds_left(task)
        left = 60 * job.settings.slurm.time_min - ran if left is None else left
        if left <= job.settings.slurm.signal_delay_s + _WARNING_SECONDS:
            return f"over its time limit: stopped {left:.0f} s before it, after {ran:.0f} s"
        if task.node == 0:
            requeue(task)  # a job that ends in its grace time would not be started again
    raise TakenAway(f"stopped by {signal.Signals(number).name} after {ran:.0f} s")


def _blame(job: CellJob, scratch: Path, rank: int, code: int) -> str:
    who = f"rank {rank}: " if job.ranks > 1 else ""
    try:
        return who + " ".join(error_file(scratch, rank).read_text(encoding="utf-8").split())
    except FileNotFoundError:
        why = " (perhaps by the kernel, for lack of memory)" if code == -signal.SIGKILL else ""
        return f"{who}{describe_code(code)}{why}{_last_words(job)}"


def _last_words(job: CellJob) -> str:
    """Return the last line of the log, if the attempt that has just ended wrote any."""
    text = job.log.read_bytes()[-_LAST_WORDS:].decode(errors="replace")
    words = text.rpartition("--- start ")[2].strip().splitlines()[1:]
    return f"; its last output: {words[-1].strip()[:200]}" if words else "; it had no output"


def failed_record(
    job: CellJob, reason: str, *, code: int | None = None, job_id: str | None = None, host: str
) -> CellRecord:
    """Save and return the record of a cell that could not write its own."""
    record = save_record(job, Outcome(reason, code, {}), seconds=0.0, busy=None, task=None)
    record = replace(record, job=job_id, host=host)
    record.save(Path(job.folder))
    return record


def debug_cell(path: str) -> None:
    """Measure the cell that a job file describes in this process, if it has one rank.

    There is no deadline, and an error that is not a FastrotError is raised unchanged. A cell of
    several ranks is measured by ``run_cell``.
    """
    job = read_job(path)
    if job.ranks > 1:
        run_cell(path)
        return
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastrot-cell-") as folder:
        try:
            outcome = Outcome(None, 0, measured_result(path, Path(folder)))
        except FastrotError as error:
            outcome = Outcome(" ".join(str(error).split()), error.exit_code, {})
    save_record(job, outcome, seconds=time.monotonic() - began, busy=None, task=None)
