"""Child processes: each leads a group of its own, and ends when we end, however that is.

A group of its own, so that Ctrl-C and Slurm's signals reach them through us alone: a second signal
of the same kind would end a trainer before it has saved.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import IO

_SET_PARENT_DEATH_SIGNAL = 1  # prctl option PR_SET_PDEATHSIG
_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None  # not loaded after a fork
_KILL_SECONDS = 10.0  # a killed process that still hangs in a dead file system is left behind

Child = subprocess.Popen[bytes]


def start_child(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    pipes: bool = False,
    death_signal: int = signal.SIGKILL,
) -> Child:
    """Start a process that gets a signal when this thread ends.

    Args:
        command: program and arguments.
        environment: added to ours.
        output: takes its standard output and error; None: they are ours.
        pipes: its standard input and output are pipes to us; ``output`` takes its errors alone.
        death_signal: which.
    """
    with _interrupt_deferred() as interrupts:
        child = subprocess.Popen(
            list(command),
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else output,
            stderr=output,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, os.getpid(), death_signal),
        )
        if interrupts:  # it is raised now, and nobody would get the child to end it
            end_children([child])
        return child


@contextmanager
def _interrupt_deferred() -> Iterator[list[int]]:
    """Raise a Ctrl-C of the block at its end: Python drops what is raised during a fork.

    Yields:
        A list that is not empty once it came.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not callable(signal.getsignal(signal.SIGINT)):
        yield []
        return
    received: list[int] = []
    try:
        with signals_noted([signal.SIGINT]) as received:
            yield received
    finally:
        if received:
            signal.raise_signal(signal.SIGINT)


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
    """Yield a list that gets each of these signals once; their handlers are put aside meanwhile."""
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
    """Send a signal to the children that still run, not to what they have started."""
    for child in children:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, number)


def end_children(children: Iterable[Child], *, patience: float = 0.0) -> None:
    """Kill processes with all that they have started, and wait for their end.

    Args:
        children: each leads a group of its own.
        patience: seconds in which they may still end by themselves.
    """
    children = list(children)
    deadline = time.monotonic() + patience
    for child in children if patience else ():
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - time.monotonic()))
    for child in children:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(_KILL_SECONDS)


def ask_tool(command: Sequence[str], *, seconds: float) -> str | None:
    """Return what a program prints; None if it is missing, fails, or takes longer than this."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
