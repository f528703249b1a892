"""The states of Slurm's jobs, this process as a task of one, and requeueing.

Clusters without an accounting database are common, so the controller is asked first: it remembers
a job for some minutes after its end. ``sacct`` is the second choice.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fastrot.errors import RankLostError
from fastrot.system.processes import ask_tool

_ASK_SECONDS = 60.0
_AGAIN_SECONDS = 5.0
_PATIENCE_SECONDS = 600.0
_LIVING = {
    *("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "RESIZING"),
    *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SIGNALING", "STAGE_OUT"),
}
_REASONS = {
    "TIMEOUT": "over its time limit",
    "CANCELLED": "cancelled by Slurm's scancel or its administrator",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory: it used more than it requested from Slurm",
    "PREEMPTED": "preempted, and not requeued",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "over Slurm's deadline",
    "COMPLETED": "its job ended normally",
}


@dataclass(frozen=True)
class JobState:
    """The state of a job.

    Attributes:
        state: Slurm's name of the state: PENDING, RUNNING, FAILED, TIMEOUT, ...
        why: Slurm's reason for the state, e.g. Resources; may be empty.
        code: exit code of an ended job; negative: the signal that ended it; None: unknown.
    """

    state: str
    why: str = ""
    code: int | None = None

    @property
    def lives(self) -> bool:
        """Return whether the job runs or may still run."""
        return self.state in _LIVING

    @property
    def reason(self) -> str:
        """Return in words why the job ended."""
        words = _REASONS.get(self.state, f"Slurm's state {self.state}")
        return words if self.code is None else f"{words} ({describe_code(self.code)})"


def describe_code(code: int) -> str:
    """Return ``exit code 3``, or ``killed by SIGKILL`` for a negative code."""
    if code >= 0:
        return f"exit code {code}"
    from signal import Signals

    try:
        return f"killed by {Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def job_states(ids: Iterable[str]) -> dict[str, JobState]:
    """Return the states of jobs by id; jobs that Slurm does not know are missing.

    Args:
        ids: ``12`` of a job, ``12_3`` of a task of an array.
    """
    wanted = set(ids)
    arrays = ",".join(sorted({each.partition("_")[0] for each in wanted}))
    if not arrays:
        return {}
    found: dict[str, JobState] = {}
    for line in _answer("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r", "-j", arrays):
        job, state, why = (*line.split("|", 2), "", "")[:3]
        found[job] = JobState(state, "" if why == "None" else why)
    for job in wanted & set(found):
        if not found[job].lives:
            found[job] = _with_code(job, found[job])
    if unknown := wanted - set(found):
        found |= _from_accounts(unknown, arrays)
    return {job: state for job, state in found.items() if job in wanted}


def _with_code(job: str, state: JobState) -> JobState:
    text = " ".join(_ask("scontrol", "-o", "show", "job", job))
    match = re.search(r"\bExitCode=(\d+):(\d+)", text)
    return JobState(state.state, state.why, _code(*match.groups()) if match else None)


def _from_accounts(ids: set[str], arrays: str) -> dict[str, JobState]:
    found = {}
    for line in _ask("sacct", "-n", "-P", "-X", "-o", "JobID,State,ExitCode", "-j", arrays):
        job, state, code = (*line.split("|", 2), "", "")[:3]
        if job in ids:
            numbers = re.fullmatch(r"(\d+):(\d+)", code)
            name = state.split(" ")[0]  # "CANCELLED by 1000"
            found[job] = JobState(name, "", _code(*numbers.groups()) if numbers else None)
    return found


def _code(code: str, signal: str) -> int:
    if int(signal):
        return -int(signal)
    # The shell that runs a job reports 128 + N for a task that signal N ended.
    return 128 - int(code) if 128 < int(code) < 128 + 65 else int(code)


def _answer(*command: str) -> list[str]:
    """Ask like ``_ask``, but repeat the question while the controller is busy or restarts.

    Raises:
        RankLostError: there was no answer for ten minutes.
    """
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS)
            if done.returncode == 0:
                return done.stdout.splitlines()
            words = done.stderr.strip()
            if "Invalid job id" in words:  # Slurm knows none of these
                return []
        except subprocess.TimeoutExpired:
            words = f"nothing within {_ASK_SECONDS:.0f} s"
        except OSError as error:
            words = str(error)
        if time.monotonic() > end:
            raise RankLostError(
                f"{command[0]}: no answer for {_PATIENCE_SECONDS / 60:.0f} minutes ({words}); the "
                "jobs continue; repeat the command once Slurm answers to follow them again"
            )
        time.sleep(_AGAIN_SECONDS)


def _ask(*command: str) -> list[str]:
    """Return the lines of Slurm's answer; none for an unknown job or a busy controller."""
    return (ask_tool(command, seconds=_ASK_SECONDS) or "").splitlines()


@dataclass(frozen=True)
class SlurmTask:
    """This process as one task of a job.

    Attributes:
        job: id of the job, ``12`` or ``12_3``.
        requeue_id: id that requeues this job and no other of its array.
        restarts: how often Slurm has restarted the job.
        node: index of this machine in the job.
        task: index of this task in the job.
        tasks: number of tasks.
        local_task: index of this task on its machine.
        nodes: number of machines.
        first_host: name of the first machine.
    """

    job: str
    requeue_id: str
    restarts: int
    node: int
    task: int
    tasks: int
    local_task: int
    nodes: int
    first_host: str

    @property
    def port(self) -> int:
        """Return a port from 20,000 on, the same in all tasks of this start, not in other jobs."""
        return 20_000 + (31 * int(self.requeue_id) + self.restarts) % 12_000


def slurm_task(environment: Mapping[str, str] | None = None) -> SlurmTask | None:
    """Return this process as a task of a Slurm job; None outside a job."""
    env = os.environ if environment is None else environment
    if "SLURM_JOB_ID" not in env:
        return None
    job = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_TASK_ID" in env:
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    hosts = env.get("SLURM_JOB_NODELIST", "localhost")
    return SlurmTask(
        job=job,
        requeue_id=env["SLURM_JOB_ID"],
        restarts=int(env.get("SLURM_RESTART_COUNT", "0")),
        node=int(env.get("SLURM_NODEID", "0")),
        task=int(env.get("SLURM_PROCID", "0")),
        tasks=int(env.get("SLURM_NTASKS", "1")),
        local_task=int(env.get("SLURM_LOCALID", "0")),
        nodes=int(env.get("SLURM_JOB_NUM_NODES", "1")),
        first_host=first_host(hosts),
    )


def first_host(hosts: str) -> str:
    """Return the first machine of Slurm's list.

    Example:
        >>> first_host("gpu[07-09,12],cpu3"), first_host("a1,a2")
        ('gpu07', 'a1')
    """
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", hosts)
    return "".join(filter(None, match.groups())) if match else hosts


def seconds_left(task: SlurmTask) -> float | None:
    """Return the seconds until the job's current time limit; None if unknown."""
    for line in _ask("squeue", "-h", "-o", "%L", "-j", task.requeue_id):
        return parse_duration(line.strip())
    return None


def parse_duration(text: str) -> float | None:
    """Return Slurm's ``days-hours:minutes:seconds`` in seconds; None for words like UNLIMITED.

    Example:
        >>> parse_duration("1-02:00:03"), parse_duration("4:05"), parse_duration("UNLIMITED")
        (93603.0, 245.0, None)
    """
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in (*parts, *([days] if dash else []))):
        return None
    seconds = 0
    for part in parts:
        seconds = 60 * seconds + int(part)
    return float(86_400 * int(days or 0) + seconds)


def requeue(task: SlurmTask) -> str | None:
    """Ask Slurm to run this job again under the same id; it then kills this start.

    Returns:
        What went wrong, in one line; None if nothing did.
    """
    command = ["scontrol", "requeue", task.requeue_id]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"scontrol requeue: {error}"
    return None if done.returncode == 0 else " ".join(done.stderr.split())
