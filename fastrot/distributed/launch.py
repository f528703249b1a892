"""Launcher of the ranks of one machine: ``fastrot train --gpus 8``.

Unlike torchrun, it opens no port, forwards every signal to every rank, and exits with the code of
the rank that failed, from which a scheduler knows what to requeue.
"""

from __future__ import annotations

import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from fastrot.distributed.error_reporting import said_beside
from fastrot.distributed.rank_process import start_rank
from fastrot.distributed.slurm_jobs import describe_code
from fastrot.errors import PreemptedError, RankLostError
from fastrot.system.processes import Child, end_children, signal_children

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_POLL_SECONDS = 0.1
_LEAVE_SECONDS = 20.0  # ranks exit by themselves within ten seconds of another's failure
_FINISH_SECONDS = 300.0  # the main rank may still send its numbers to a tracker


def launch(
    command: Sequence[str],
    ranks: int,
    *,
    restarts: int = 0,
    again: Callable[[], Sequence[str]] = lambda: (),
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Run one process per rank and wait for all.

    Once one has failed, the others have some seconds to exit; then they are killed.

    Args:
        command: program and arguments, the same for all.
        ranks: number of processes.
        restarts: how often all are restarted after a rank was lost (69): killed, or silent.
        again: returns the arguments to add for a restart.
        say: called with each line for the user.

    Returns:
        The exit code of the rank that failed first, preferring a failure of its own over one caused
        by another rank; 0 if none failed.
    """
    group = _RankGroup()
    previous = {number: signal.signal(number, group.forward) for number in _SIGNALS}
    try:
        for start in range(restarts + 1):
            group.start([*command, *(again() if start else ())], ranks)
            code, reason = group.wait()
            if code != RankLostError.exit_code or group.stopping or start == restarts:
                if group.lost and not group.has_told:
                    say(
                        f"fastrot: {reason}; unless you ended it, dmesg tells if memory ran out; "
                        "run the same command again (train: with --resume once there is a "
                        "checkpoint)"
                    )
                break
            say(f"{reason}; restarting all ranks (restart {start + 1} of {restarts})")
        return code
    finally:
        group.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)


class _RankGroup:
    """The rank processes of one start."""

    def __init__(self) -> None:
        self.stopping = False
        self.lost = False
        """Whether a rank was killed, or did not end by itself: none of its own words tell why."""
        self.has_told = False
        """Whether a rank has printed why it failed."""
        self._signals: list[int] = []
        self._signalled: set[int] = set()
        self._processes: list[Child] = []

    def start(self, command: Sequence[str], ranks: int) -> None:
        # Only this user can enter the folder; each start has a new file as its rendezvous.
        self._folder = tempfile.TemporaryDirectory(prefix="fastrot-ranks-")
        self._store = store = Path(self._folder.name) / secrets.token_hex(8)
        self._processes = []
        for rank in range(ranks):
            self._processes.append(
                start_rank(
                    command,
                    rank,
                    ranks,
                    store,
                    # It makes a rank save and stop. Nobody else sends this signal: a second one
                    # of a kind would end the rank without saving.
                    death_signal=signal.SIGHUP,
                )
            )
        for number in self._signals:  # received meanwhile; some ranks may already have them
            signal_children(
                [each for each in self._processes if each.pid not in self._signalled], number
            )

    def wait(self) -> tuple[int, str]:
        """Return the exit code of the group, and a line that says which rank it comes from."""
        first: tuple[int, int] | None = None  # rank and code of the first failure
        own: tuple[int, int] | None = None  # of the first that no other rank caused
        ended: dict[int, int] = {}
        killed: set[int] = set()  # by this process
        deadline = float("inf")
        while len(ended) < len(self._processes):
            for rank, process in enumerate(self._processes):
                code = process.poll()
                if rank in ended or code is None:
                    continue
                ended[rank] = code
                orderly = code in (0, 75)
                wait = _FINISH_SECONDS if orderly else _LEAVE_SECONDS
                deadline = min(deadline, time.monotonic() + wait)
                if code:
                    first = first or (rank, code)
                    if code != RankLostError.exit_code and own is None:
                        own = (rank, code)
            if time.monotonic() > deadline and not killed:
                killed = set(range(len(self._processes))) - set(ended)
                own = own or next(
                    ((rank, 69) for rank in range(len(self._processes)) if rank not in ended), None
                )
                self.kill()
            time.sleep(_POLL_SECONDS)
        self.has_told = bool(said_beside(self._store))
        self._folder.cleanup()
        rank, code = own or first or (0, 0)
        self.lost = code < 0 or rank in killed
        if code < 0 and -code in self._signals:
            return PreemptedError.exit_code, f"rank {rank} was stopped while it started"
        if code < 0:
            return RankLostError.exit_code, f"rank {rank} was {describe_code(code)}"
        if rank in killed:
            return code, f"rank {rank} did not end after the others, and was killed"
        return code, f"rank {rank} exited with {code}"

    def forward(self, number: int, frame: FrameType | None) -> None:
        """Forward a signal; the ranks decide what it means."""
        self.stopping = True
        self._signals.append(number)
        self._signalled |= {each.pid for each in self._processes}
        signal_children(self._processes, number)

    def kill(self) -> None:
        """Kill the remaining ranks, even stopped ones, with the processes that they started."""
        end_children(self._processes)


def fastrot_command(arguments: Sequence[str]) -> list[str]:
    """Return the command line that runs this fastrot with the given arguments."""
    return [sys.executable, "-m", "fastrot", *arguments]
