"""The start of a process that is one rank: of a run, of a cell of a sweep, of a measurement."""

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
    """Start a process as one of ``size`` ranks; a single rank is told of no others.

    Args:
        command: program and arguments, the same for all ranks.
        rank: of the process.
        size: number of ranks.
        rendezvous: where they find each other.
        local_rank: of the process on its machine; None: there is one machine.
        local_size: ranks of a machine; likewise.
        environment: added to ours.
        output: takes its standard output and error; None: they are ours.
        death_signal: what it gets when this thread ends.
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
    """Return where the ranks of a job find each other.

    Args:
        task: of Slurm, if this process is one.
        nodes: machines of the job.
        store: the file, where one machine is enough.
    """
    return store if task is None or nodes == 1 else (task.first_host, task.port)
