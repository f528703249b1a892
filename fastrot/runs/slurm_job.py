"""``fastrot train|eval --cluster slurm``: one task per rank, restarted where it was stopped.

Each task runs ``fastrot train --resume`` as a separate process and forwards Slurm's signals to
it, so that the trainer's own handler sets its flag and all ranks save at the same step (75). Then
the job is requeued under the same id until the run is complete or two starts in a row have made
no progress (70). The run folder is the run's identity: its trackers continue the same run.

A task of an evaluation runs ``fastrot eval``, which repeats no finished part. Where no model is
being trained a signal ends it, and what was saved until then counts.

``NAME.slurm`` beside the run folder holds what submitit needs, the logs, and ``starts.jsonl``.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrot.distributed.launch import fastrot_command
from fastrot.distributed.rank_process import rendezvous_of, start_rank
from fastrot.distributed.slurm import (
    SubmissionError,
    TrainSlurmSettings,
    require_slurm,
    submit,
)
from fastrot.distributed.slurm_jobs import SlurmTask, job_states, requeue, slurm_task
from fastrot.errors import (
    FastrotError,
    NonFiniteError,
    PreemptedError,
    RankLostError,
    UsageError,
)
from fastrot.runs.folder import RunFolder, read_status
from fastrot.system.jsonl import JsonLines, read_json_lines
from fastrot.system.processes import (
    Child,
    end_children,
    signal_children,
    signals_noted,
)

_FORWARDED = (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
_POLL_SECONDS = 0.2
_KILLED_SECONDS = 120.0  # from a requeue until Slurm has ended this start
_WATCH_SECONDS = 5.0


@dataclass(frozen=True)
class Submission:
    """A submitted job.

    Attributes:
        job: Slurm's job id, which all requeues keep.
        folder: folder of its logs.
        out: run folder, or folder of the results.
        trains: whether it is a run, not an evaluation.
    """

    job: str
    folder: Path
    out: Path
    trains: bool

    def lines(self) -> list[str]:
        """Return lines that say what to type next."""
        stop = (
            "to stop and save a checkpoint: scancel {}; to resume: the same command with --resume"
        )
        if not self.trains:
            stop = "to stop: scancel {}; to continue: the same command"
        return [
            f"submitted job {self.job}; the {'run' if self.trains else 'results'}: {self.out}",
            f"log: {self.folder}/{self.job}_0_log.out (and .err)",
            f"follow: tail -F {self.folder}/{self.job}_0_log.*; state: squeue -j {self.job}",
            stop.format(self.job),
        ]


def submit_command(
    words: Sequence[str], out: Path, *, nodes: int, gpus: int, settings: TrainSlurmSettings
) -> Submission:
    """Submit a training run or an evaluation.

    Args:
        words: arguments of ``fastrot train`` or ``eval``, without ``--out`` and ``--resume``.
        out: run folder, or folder of the results, on a file system that the nodes share.
        nodes: number of machines.
        gpus: GPUs and ranks per machine; 0: no GPU, and ``settings.tasks_per_node`` ranks.
        settings: further Slurm settings.

    Raises:
        UsageError: a package or program is missing, or Slurm refuses the job.
    """
    require_slurm()
    tasks = settings.tasks_per_node or max(gpus, 1)
    if gpus and tasks != gpus:
        raise UsageError(f"--slurm tasks_per_node={tasks}: a rank has one GPU, and --gpus={gpus}")
    out = out.absolute()
    folder = out.with_name(f"{out.name}.slurm")
    folder.mkdir(mode=0o775, parents=True, exist_ok=True)
    try:
        [job] = submit(
            settings,
            run_task,
            [(list(words), str(out), str(folder))],
            folder=folder,
            name=f"fastrot-{re.sub(r'[^A-Za-z0-9._-]', '_', out.name)[:50]}",
            nodes=nodes,
            tasks_per_node=tasks,
            gpus_per_node=gpus or None,
            requeue=True,
        )
    except SubmissionError as error:
        raise UsageError(f"Slurm refuses the job: {error}; change the --slurm options") from error
    return Submission(job, folder, out, words[0] == "train")


def wait_for(submission: Submission, say: Callable[[str], None]) -> int:
    """Wait until a job has ended for good.

    Returns:
        Exit code of the run.
    """
    last_line = ""
    while True:
        state = job_states([submission.job]).get(submission.job)
        if state is None or not state.lives:
            break
        line = f"job {submission.job}: {state.state}" + (f" ({state.why})" if state.why else "")
        if line != last_line:
            say(line)
            last_line = line
        time.sleep(_WATCH_SECONDS)
    status = read_status(submission.out) if submission.trains else {}
    message = f"; {status['message']}" if status.get("message") else ""
    say(f"job {submission.job}: {state.reason if state else 'ended'}{message}")
    code = status.get("exit_code")
    # A run that ended well has said so; an evaluation has no status.
    least = 1 if submission.trains else 0
    if code is None and state is not None and state.code is not None and state.code >= least:
        code = state.code
    return FastrotError.exit_code if code is None else int(code)


def run_task(words: Sequence[str], out: str, folder: str) -> None:
    """Run one rank as a task of the job, and exit with its code; called by submitit."""
    task = slurm_task()
    if task is None:
        raise UsageError("this is not a task of a Slurm job")
    sys.exit(_Rank(words, Path(out), Path(folder), task).run())


def made_no_progress(starts: Sequence[int], now: int) -> bool:
    """Return whether the last two starts of a job made no progress.

    Args:
        starts: what was saved when each start of the job began, see ``saved_until_now``.
        now: what is saved now.

    Example:
        >>> made_no_progress([0, 40], 40), made_no_progress([0, 40, 40], 40)
        (False, True)
    """
    return len(starts) >= 2 and starts[-2] == starts[-1] == now


def saved_until_now(out: Path, *, trains: bool) -> int:
    """Return a number that changes when a job saves something.

    Of a run it is the step of the newest checkpoint; of an evaluation the time, in ns, when
    features, a checkpoint or a part of the results were last written, and 0 before that.
    """
    if trains:
        return int(read_status(out).get("step", 0))
    last = 0
    for pattern in ("cache/*/*", "*/parts*/*", "*/training/checkpoints/*"):
        for path in out.glob(pattern):
            if path.suffix != ".lock":  # which every start writes
                with suppress(OSError):  # it was removed meanwhile
                    last = max(last, path.stat().st_mtime_ns)
    return last


class _Rank:
    """One rank: it starts the command, forwards signals, and decides what follows."""

    def __init__(self, words: Sequence[str], out: Path, folder: Path, task: SlurmTask) -> None:
        self._words, self._out, self._folder, self._task = words, out, folder, task
        self._is_main = task.task == 0
        self._trains = words[0] == "train"

    def run(self) -> int:
        """Run the task and return its exit code."""
        task, began = self._task, saved_until_now(self._out, trains=self._trains)
        starts = self._earlier_starts()
        self._note(kind="start", step=began)
        self._say(
            f"start {task.restarts + 1} of job {task.job} (SLURM_RESTART_COUNT={task.restarts})"
            + (f" from step {began}" if self._trains else "")
        )
        if made_no_progress(starts, began):
            return self._give_up(began)
        with signals_noted(_FORWARDED) as received:
            code = self._run(received)
            step = saved_until_now(self._out, trains=self._trains)
            self._note(
                kind="end",
                step=step,
                exit_code=code,
                signals=[signal.Signals(each).name for each in received],
            )
            if code != PreemptedError.exit_code or signal.SIGTERM in received:
                # After a SIGTERM, Slurm or whoever cancelled the job decides what follows.
                return code
            if made_no_progress([*starts, began], step):
                return self._give_up(step)
            self._requeue(received)
        return code

    def _run(self, received: Sequence[int]) -> int:
        task = self._task
        child = start_rank(
            fastrot_command([*self._words, "--out", str(self._out), *self._resume]),
            task.task,
            task.tasks,
            rendezvous_of(task, task.nodes, self._store),
            local_rank=task.local_task,
            local_size=task.tasks // task.nodes,
        )
        try:
            code = _wait_forwarding(child, received)
        finally:
            end_children([child])
            if self._is_main:
                self._store.unlink(missing_ok=True)
        if -code in received:
            return PreemptedError.exit_code  # nothing caught it, so nothing was lost
        if received and code == RankLostError.exit_code and not self._trains:
            return PreemptedError.exit_code  # the signal ended another rank before this one
        return 128 - code if code < 0 else code

    @property
    def _resume(self) -> Sequence[str]:
        return ("--resume",) if self._trains else ()

    @property
    def _store(self) -> Path:
        """Return the file through which ranks on one machine find each other: one per start."""
        return self._folder / f"store-{self._task.job}-{self._task.restarts}"

    def _requeue(self, received: Sequence[int]) -> None:
        """Requeue the job, on the main rank; then wait until Slurm ends this task."""
        if self._is_main:
            what = "the checkpoint is written" if self._trains else "what is finished is kept"
            self._say(f"{what}; job {self._task.job} is requeued")
            problem = requeue(self._task)
            if problem is not None:
                more = "add --resume to the same command" if self._trains else "the same command"
                self._say(f"not requeued: {problem}; to continue: {more}")
                return
        end = time.monotonic() + _KILLED_SECONDS
        while signal.SIGTERM not in received and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)

    def _give_up(self, step: int) -> int:
        """Stop a job that would be requeued forever; return its exit code."""
        code = NonFiniteError.exit_code  # 70: this run makes no progress
        what, more = "saved nothing", ""
        if self._trains:
            what = f"ended at step {step}, where they had begun"
            more = "write checkpoints more often (--set train.checkpoint_minutes=...), "
        line = (
            f"job {self._task.job}: two starts in a row {what}, so it is not requeued again; give "
            f"it more time (--slurm time_min=...), {more}or look for what ended it in "
            f"{self._folder}"
        )
        self._say(f"fastrot: {line}")
        if self._is_main:
            self._note(kind="stop", step=step, exit_code=code)
        if self._is_main and self._trains:
            with suppress(FastrotError), RunFolder(self._out, resume=True) as run:
                epoch = float(read_status(self._out).get("epoch", 0.0))
                run.write_status("failed", step=step, epoch=epoch, exit_code=code, message=line)
        return code

    def _earlier_starts(self) -> list[int]:
        """Return what was saved when earlier starts of this job began; all tasks read the same."""
        return [
            int(record["step"])
            for record in read_json_lines(self._folder / "starts.jsonl")
            if record.get("kind") == "start"
            and record.get("job") == self._task.job
            and record.get("restart", 0) < self._task.restarts
        ]

    def _note(self, **record: Any) -> None:
        if self._is_main:
            lines = JsonLines(self._folder / "starts.jsonl")
            lines.append(
                {
                    "job": self._task.job,
                    "restart": self._task.restarts,
                    "time": time.time(),
                    **record,
                }
            )
            lines.close()

    def _say(self, text: str) -> None:
        if self._is_main:
            print(text, flush=True)


def _wait_forwarding(child: Child, received: Sequence[int]) -> int:
    """Wait for a process and forward each signal once: a second of its kind would kill it.

    Returns:
        Its exit code; negative: the signal that ended it.
    """
    sent = 0
    while child.poll() is None:
        for number in received[sent:]:
            signal_children([child], number)
            sent += 1
        time.sleep(_POLL_SECONDS)
    return int(child.returncode)
