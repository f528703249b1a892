"""Ranks of one machine as processes with a rendezvous in a file, so that no port is opened."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from fastrot.distributed.rank_process import start_rank
from fastrot.errors import RankLostError
from fastrot.system.processes import Child, end_children

_POLL_SECONDS = 0.05


def run_ranks(module: str, arguments: Sequence[str], *, ranks: int, deadline: float) -> str:
    """Run ``python -m module ARGUMENTS`` in one process per rank, and wait for all.

    The rendezvous file is in a folder that no other user can access. If a rank fails or the
    deadline passes, all ranks are terminated.

    Args:
        module: module that joins the group with ``distributed.joined``.
        arguments: arguments of every rank.
        ranks: number of ranks.
        deadline: time limit for all ranks, in seconds.

    Returns:
        The output of rank 0, including errors and warnings.

    Raises:
        RankLostError: a rank failed (the message has its last line), or the deadline passed.
    """
    with tempfile.TemporaryDirectory(prefix="fastrot-ranks-") as scratch, ExitStack() as stack:
        store, logs = Path(scratch, "store"), [Path(scratch, f"{r}.log") for r in range(ranks)]
        processes: list[Child] = []
        stack.callback(end_children, processes)
        for rank, log in enumerate(logs):
            processes.append(
                start_rank(
                    [sys.executable, "-m", module, *arguments],
                    rank,
                    ranks,
                    store,
                    environment={"OMP_NUM_THREADS": "1"},
                    output=stack.enter_context(log.open("wb")),
                )
            )
        end = time.monotonic() + deadline
        while any(process.poll() is None for process in processes):
            if any(process.returncode for process in processes):
                break
            if time.monotonic() > end:
                raise RankLostError(f"{ranks} ranks of {module} did not finish in {deadline:g} s")
            time.sleep(_POLL_SECONDS)
        for rank, process in enumerate(processes):
            if process.returncode:
                last = (logs[rank].read_text().strip().splitlines() or ["no output"])[-1]
                raise RankLostError(f"rank {rank} ended with {process.returncode}: {last}")
        return logs[0].read_text()
