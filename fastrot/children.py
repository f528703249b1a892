"""Processes that do our work: each leads a group of its own, and ends when we end, however that is.

A group of its own, so that Ctrl-C and Slurm's signals reach them through us alone: a second signal
of the same kind would end a trainer before it has saved.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import IO

_SET_PARENT_DEATH_SIGNAL = 1  # prctl option PR_SET_PDEATHSIG
_KILL_SECONDS = 10.0  # a killed process that still hangs in a dead file system is left behind

Child = subprocess.Popen[bytes]


def start_child(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
) -> Child:
    """Start a process that is killed when this thread ends.

    Args:
        command: program and arguments.
        environment: added to ours.
        output: takes both of its streams; None: ours.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return subprocess.Popen(
        list(command),
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=partial(_die_with, library, os.getpid()) if library else None,
    )


def _die_with(library: ctypes.CDLL, parent: int) -> None:
    library.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os.kill(os.getpid(), signal.SIGKILL)


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
