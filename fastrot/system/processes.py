"""Processes that do our work: each leads a group of its own, and ends when we end, however that is.

A group of its own, so that Ctrl-C and Slurm's signals reach them through us alone: a second signal
of the same kind would end a trainer before it has saved.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO

_SET_PARENT_DEATH_SIGNAL = 1  # prctl option PR_SET_PDEATHSIG
_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None  # not loaded after a fork
_KILL_SECONDS = 10.0  # a killed process that still hangs in a dead file system is left behind

Child = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Holder:
    """Who holds a lock; the nonce tells two acquisitions of one process apart."""

    host: str
    pid: int
    boot_id: str
    process_start: str
    since: str
    nonce: str
    pid_space: str = ""

    @classmethod
    def of_this_process(cls) -> Holder:
        """Describe the calling process."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            boot_id=_boot_id(),
            process_start=_process_start(os.getpid()),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            nonce=secrets.token_hex(8),
            pid_space=_pid_space(),
        )

    @property
    def of_this_machine(self) -> bool:
        """Whether its pid can be looked up here (same host name, and no reboot since)."""
        # Containers of one host may share its name and boot, and not its process ids.
        where = (socket.gethostname(), _boot_id(), _pid_space())
        return (self.host, self.boot_id, self.pid_space or where[2]) == where

    @property
    def runs(self) -> bool:
        """Whether that very process still exists (a pid alone may have been given away again)."""
        return bool(self.process_start) and _process_start(self.pid) == self.process_start


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Start time of a process in clock ticks since boot; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def start_child(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    death_signal: int = signal.SIGKILL,
) -> Child:
    """Start a process that gets a signal when this thread ends.

    Args:
        command: program and arguments.
        environment: added to ours.
        output: takes both of its streams; None: ours.
        death_signal: which.
    """
    return subprocess.Popen(
        list(command),
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=partial(end_with_parent, os.getpid(), death_signal),
    )


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when its parent ends (on Linux).

    Args:
        parent: its process id, taken there; it may have ended since.
        number: the signal.
    """
    if _LIBRARY is not None:
        _LIBRARY.prctl(_SET_PARENT_DEATH_SIGNAL, number)
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), number)


@contextmanager
def signals_noted(numbers: Iterable[int]) -> Iterator[list[int]]:
    """Those of these signals that came, each once; other handlers are put aside meanwhile."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number not in received:
            received.append(number)

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signal_children(children: Iterable[Child], number: int) -> None:
    """Send a signal to those that still run; their own workers hear of it from them."""
    for child in children:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, number)


def end_children(children: Iterable[Child]) -> None:
    """Kill their groups, and take notice of their end."""
    children = list(children)
    for child in children:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(_KILL_SECONDS)
