"""Processes that map a function over requests, in order, and never outlive or outwait us.

A worker ends when the parent does, however that ends (parent-death signal; end of its pipe). A
worker that dies ends the parent's wait at once, and one that falls silent at a deadline.
Importing this module imports no torch.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from fastrot.errors import FastrotError, OutOfMemoryError, StorageError

Request = TypeVar("Request")
Result = TypeVar("Result")

DEADLINE_SECONDS = 300.0
"""Longest wait for any result of any worker."""

MAX_BATCH = 16
"""Requests a message at most: small images are done faster than a message travels."""

_IN_FLIGHT = 2  # messages a worker: one at work, one waiting
_SET_PARENT_DEATH_SIGNAL = 1  # prctl option PR_SET_PDEATHSIG


class WorkerPool(Generic[Request, Result]):
    """Run ``function`` in ``workers`` processes; with 0 workers in this one.

    Args:
        function: called with one request; an exception in it is a defect and ends the run.
        workers: number of processes.

    Example:
        >>> with WorkerPool(len, workers=0) as pool:
        ...     list(pool.map(["a", "bb"]))
        [1, 2]
    """

    def __init__(self, function: Callable[[Request], Result], *, workers: int) -> None:
        self._function = function
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        # A forked worker starts at once and does not import the caller's __main__ again.
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        for _ in range(workers):
            ours, theirs = context.Pipe()
            # A fork inherits our ends of the pipes; while it holds one open, no other worker
            # would see the end of file when we die.
            inherited = [*self._connections, ours] if sys.platform == "linux" else []
            process = context.Process(
                target=_serve, args=(function, theirs, inherited, os.getpid()), daemon=True
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def __enter__(self) -> WorkerPool[Request, Result]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def map(self, requests: Iterable[Request], *, batch: int = MAX_BATCH) -> Iterator[Result]:
        """Yield the result of each request, in the order of the requests.

        Args:
            requests: drawn not far ahead of the results.
            batch: requests a message; fewer where results are large, since up to four messages
                a worker may wait in memory.

        Raises:
            OutOfMemoryError: a worker was killed.
            FastrotError: a worker crashed.
            StorageError: no result came for ``DEADLINE_SECONDS``.
        """
        if not self._processes:
            yield from map(self._function, requests)
            return
        batches = _batches(requests, batch)
        at_work: list[deque[int]] = [deque() for _ in self._processes]  # numbers of batches
        done: dict[int, list[Result]] = {}
        sent = yielded = 0
        # Results that wait for an earlier one take memory; this bounds how many can.
        ahead = 2 * _IN_FLIGHT * len(self._processes)
        while True:
            while sent - yielded < ahead:
                worker = min(range(len(at_work)), key=lambda w: len(at_work[w]))
                if len(at_work[worker]) == _IN_FLIGHT or not (chosen := next(batches, [])):
                    break
                self._send(worker, chosen)
                at_work[worker].append(sent)
                sent += 1
            if yielded == sent:
                return
            if yielded in done:
                yield from done.pop(yielded)
                yielded += 1
            else:
                for worker, results in self._receive():
                    done[at_work[worker].popleft()] = results

    def close(self) -> None:
        """Stop the workers at once; safe to call twice."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.join()
        self._connections, self._processes = [], []

    def _send(self, worker: int, batch: list[Request]) -> None:
        try:
            self._connections[worker].send(batch)
        except OSError:
            raise self._death(worker) from None

    def _receive(self) -> list[tuple[int, list[Result]]]:
        ready = wait(self._connections, timeout=DEADLINE_SECONDS)
        if not ready:
            raise StorageError(
                f"no image was finished for {DEADLINE_SECONDS:.0f} s: the storage stalls"
            )
        results = []
        for worker, connection in enumerate(self._connections):
            if connection in ready:
                try:
                    results.append((worker, connection.recv()))
                except (EOFError, OSError):
                    raise self._death(worker) from None
        return results

    def _death(self, worker: int) -> FastrotError:
        process = self._processes[worker]
        process.join(1)
        if process.exitcode == -signal.SIGKILL:
            return OutOfMemoryError(
                f"worker process {process.pid} was killed, most likely for lack of memory; "
                "use fewer --workers"
            )
        return FastrotError(
            f"worker process {process.pid} ended with exit code {process.exitcode}; its message "
            "is above"
        )


def _batches(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    remaining = iter(requests)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def _serve(
    function: Callable[[Any], Any], pipe: Connection, inherited: list[Connection], parent: int
) -> None:
    # Ctrl-C reaches the whole process group; the parent decides when workers stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            return
    for connection in inherited:
        connection.close()
    try:
        while True:
            pipe.send([function(request) for request in pipe.recv()])
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
