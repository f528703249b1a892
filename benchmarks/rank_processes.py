"""Ranks of one machine as processes that meet in a file: no port is opened for the rendezvous."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from fastrot.errors import PeerLostError
from fastrot.launch import rank_environment

_POLL_SECONDS = 0.05


def run_ranks(module: str, arguments: Sequence[str], *, ranks: int, deadline: float) -> str:
    """Run ``python -m module ARGUMENTS`` as so many ranks.

    The file lies in a folder that no other user can enter. When one rank fails, or the time is
    over, all are ended.

    Args:
        module: joins with ``distributed.joined``.
        arguments: the same for all.
        ranks: how many.
        deadline: seconds.

    Returns:
        What rank 0 printed.

    Raises:
        PeerLostError: a rank failed, with the last line of what it said; or the deadline passed.
    """
    with tempfile.TemporaryDirectory(prefix="fastrot-ranks-") as scratch, ExitStack() as stack:
        said = [stack.enter_context(Path(scratch, f"{r}.log").open("w+")) for r in range(ranks)]
        out = stack.enter_context(Path(scratch, "out").open("w+"))
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, processes)
        for rank in range(ranks):
            environment = os.environ | rank_environment(rank, ranks, Path(scratch, "store"))
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, *arguments], env=environment,
                    stdin=subprocess.DEVNULL, stderr=said[rank],
                    stdout=out if rank == 0 else subprocess.DEVNULL,
                )
            )  # fmt: skip
        end = time.monotonic() + deadline
        while any(process.poll() is None for process in processes):
            if any(process.returncode for process in processes):
                break
            if time.monotonic() > end:
                raise PeerLostError(f"{ranks} ranks of {module} did not end in {deadline:g} s")
            time.sleep(_POLL_SECONDS)
        for rank, process in enumerate(processes):
            if process.returncode:
                said[rank].seek(0)
                last = (said[rank].read().strip().splitlines() or ["it said nothing"])[-1]
                raise PeerLostError(f"rank {rank} ended with {process.returncode}: {last}")
        out.seek(0)
        return out.read()


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
