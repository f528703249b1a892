"""Start of a process that is one rank of a run, of a sweep's cell or of a measurement."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from fastrot.distributed.rank_environment import Rendezvous, rank_environment
from fastrot.distributed.slurm_jobs import SlurmTask
from fastrot.system.processes import Child, start_child


def start_rank(
    command: Sequence[str],
    rank: int,
    size: int,
    rendezvous: Rendezvous,
    *,
    local_rank: int | None = None,
    local_size: int | None = None,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    death_signal: int = signal.SIGKILL,
) -> Child:
    """Start a process as one of ``size`` ranks; a single rank gets no rank variables.

    Args:
        command: program and arguments, the same for all ranks.
        rank: rank of the process.
        size: number of ranks.
        rendezvous: how the ranks find each other.
        local_rank: index of the process on its machine; None: there is one machine.
        local_size: ranks per machine; None: there is one machine.
        environment: variables added to those of this process.
        output: receives its standard output and error; None: they are inherited.
        death_signal: signal that it gets when this thread ends.
    """
    ranks = (
        rank_environment(rank, size, rendezvous, local_rank=local_rank, local_size=local_size)
        if size > 1
        else {}
    )
    return start_child(
        command,
        environment={**(environment or {}), **ranks},
        output=output,
        death_signal=death_signal,
    )


def rendezvous_of(task: SlurmTask | None, nodes: int, store: Path) -> Rendezvous:
    """Return how the ranks of a job find each other.

    Args:
        task: the Slurm task that this process is, if it is one.
        nodes: number of machines of the job.
        store: the file to use on a single machine.
    """
    return store if task is None or nodes == 1 else (task.first_host, task.port)
