"""Child processes: each leads its own process group and exits when this process exits, in any way.

In its own group a child gets Ctrl-C and Slurm's signals only through this process: a second signal
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
_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None  # must not be loaded after a fork
_KILL_SECONDS = 10.0  # a killed process that still hangs in a dead file system is abandoned

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
        environment: variables added to those of this process.
        output: receives its standard output and error; None: they are inherited.
        pipes: connect its standard input and output by pipes; ``output`` receives only its errors.
        death_signal: signal that it gets when this thread ends.
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
        if interrupts:  # it is about to be raised, and no caller would get the child
            end_children([child])
        return child


@contextmanager
def _interrupt_deferred() -> Iterator[list[int]]:
    """Defer a Ctrl-C to the end of the block, because Python drops what is raised during a fork.

    Yields:
        A list that is no longer empty once Ctrl-C came.
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
    """Make the kernel send this process a signal when its parent ends (on Linux).

    Args:
        parent: process id of the parent, read in the parent, which may have ended since.
        number: signal to send.
    """
    if _LIBRARY is not None:
        _LIBRARY.prctl(_SET_PARENT_DEATH_SIGNAL, number)
        if os.getppid() != parent:  # the parent ended before the line above
            os.kill(os.getpid(), number)


@contextmanager
def signals_noted(numbers: Iterable[int]) -> Iterator[list[int]]:
    """Yield a list that collects each of these signals once, in place of their handlers."""
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
    """Send a signal to the children that still run, not to the processes they have started."""
    for child in children:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, number)


def end_children(children: Iterable[Child], *, patience: float = 0.0) -> None:
    """Kill processes and everything they started, and wait for them to exit.

    Args:
        children: processes that each lead their own group.
        patience: time for them to exit on their own first, in seconds.
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
    """Return what a program prints; None if it is missing, fails, or exceeds ``seconds``."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
