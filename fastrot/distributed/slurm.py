"""Slurm settings of training runs and sweeps, and the submission of jobs through submitit."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from fastrot.errors import UsageError
from fastrot.system.yaml_config import Section, validate_tree


class SlurmSettings(Section):
    """What a job requests from Slurm; null: the cluster's default."""

    partition: str | None = None
    """Partition of the job."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have, e.g. h100."""
    cpus_per_task: Annotated[int, Field(ge=1)] | None = None
    """Cores per task: per rank of a run, or per node of a sweep's cell."""
    mem_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory on each node, GB."""
    time_min: Annotated[int, Field(ge=1)]
    """Time limit, minutes."""
    signal_delay_s: Annotated[int, Field(ge=1)]
    """Seconds before the time limit at which the job is warned by a signal."""


class TrainSlurmSettings(SlurmSettings):
    """What ``fastrot train|eval --slurm KEY=VALUE`` sets."""

    time_min: Annotated[int, Field(ge=1)] = 24 * 60
    """Time limit of one start, minutes; the run continues in the next one."""
    signal_delay_s: Annotated[int, Field(ge=1)] = 120
    """Seconds before the limit at which the run must save: time for a step and a checkpoint."""
    tasks_per_node: Annotated[int, Field(ge=1)] | None = None
    """Ranks per node; null: one per GPU, or one if there is none."""


class SweepSlurmSettings(SlurmSettings):
    """What each cell of a sweep requests from Slurm: the section ``slurm`` of its file."""

    gpus_per_node: Annotated[int, Field(ge=1)] | None = None
    """GPUs per node of a cell: at least as many as it has ranks there."""
    time_min: Annotated[int, Field(ge=1)] = 30
    """Time limit of a cell, minutes: more than deadline_s, which ends it more gently."""
    array_parallelism: Annotated[int, Field(ge=1)] = 8
    """Cells that may run at the same time."""
    signal_delay_s: Annotated[int, Field(ge=1)] = 60
    """Seconds before the time limit at which a cell is warned by a signal."""


class SubmissionError(UsageError):
    """Slurm refuses a job: nothing was submitted (exit code 64)."""


def parse_slurm_options(texts: Sequence[str]) -> TrainSlurmSettings:
    """Read settings from ``key=value`` texts.

    Raises:
        UsageError: an unknown key, or a value that breaks a rule.
    """
    tree: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign:
            raise UsageError(f"--slurm {text!r}: write key=value, e.g. --slurm partition=gpu")
        try:
            tree[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"--slurm {text!r}: the value is not valid YAML") from None
    return validate_tree(TrainSlurmSettings, tree, "--slurm")


def require_slurm() -> None:
    """Check that jobs can be submitted here, before anything is written.

    Raises:
        UsageError: a package or a program is missing.
    """
    if find_spec("submitit") is None:
        raise UsageError("--cluster slurm needs the package submitit: pip install 'fastrot[slurm]'")
    if shutil.which("sbatch") is None:
        raise UsageError("--cluster slurm: no sbatch here; run it on a node that submits jobs")


def submit(
    settings: SlurmSettings,
    function: Callable[..., None],
    calls: Sequence[Sequence[Any]],
    *,
    folder: Path,
    name: str,
    nodes: int,
    tasks_per_node: int = 1,
    gpus_per_node: int | None = None,
    array_parallelism: int | None = None,
    requeue: bool = False,
) -> list[str]:
    """Submit calls of a function as jobs with the same settings.

    Args:
        settings: what the jobs request from Slurm.
        function: function that each task calls; it is pickled by name.
        calls: positional arguments of the call in each job.
        folder: holds submitit's files and the logs, on a file system that the nodes share.
        name: name of the jobs.
        nodes: machines per job.
        tasks_per_node: processes per machine.
        gpus_per_node: GPUs per machine.
        array_parallelism: makes the jobs one array that runs this many tasks at a time.
        requeue: let Slurm restart a job that lost its nodes.

    Returns:
        Ids of the jobs, in the order of the calls: ``12``, or ``12_3`` in an array.

    Raises:
        SubmissionError: Slurm refuses the jobs; the message says why.
    """
    submitit: Any = importlib.import_module("submitit")
    asked = {
        "slurm_partition": settings.partition,
        "slurm_account": settings.account,
        "slurm_qos": settings.qos,
        "slurm_constraint": settings.constraint,
        "slurm_array_parallelism": array_parallelism,
        "slurm_additional_parameters": {"requeue": True} if requeue else None,
        "cpus_per_task": settings.cpus_per_task,
        "gpus_per_node": gpus_per_node,
        "mem_gb": settings.mem_gb,
    }
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        executor.update_parameters(
            name=name,
            nodes=nodes,
            tasks_per_node=tasks_per_node,
            timeout_min=settings.time_min,
            slurm_signal_delay_s=settings.signal_delay_s,
            **{key: value for key, value in asked.items() if value is not None},
        )
        if array_parallelism is None:
            jobs = [executor.submit(function, *call) for call in calls]
        else:
            jobs = executor.map_array(function, *zip(*calls, strict=True))
    except Exception as error:  # of any type: nothing was submitted
        raise SubmissionError(_refusal(error)) from error
    return [str(job.job_id) for job in jobs]


def _refusal(error: Exception) -> str:
    """Return the error as one line: sbatch's own message if sbatch failed."""
    said = getattr(error, "stderr", None)
    if isinstance(error, subprocess.CalledProcessError) and said:
        return " ".join((said if isinstance(said, str) else said.decode()).split())
    return " ".join(str(error).split())[:400] or type(error).__name__
