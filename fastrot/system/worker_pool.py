"""Processes that map a function over requests in order, and never outlive or block their parent.

A worker exits when the parent exits, in any way (parent-death signal; end of its pipe). If a worker
dies, the parent's wait ends at once; if it falls silent, at a deadline. A worker that is stopped
or ignores signals delays neither ``close`` nor the end of the parent.
Importing this module imports no torch.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastrot.errors import FastrotError, OutOfMemoryError, StorageError
from fastrot.system.files import allow_open_files
from fastrot.system.processes import end_with_parent

if sys.platform == "linux":
    # A forked worker starts at once and does not import the caller's __main__ again.
    from multiprocessing.context import ForkProcess as Process
else:
    from multiprocessing.context import SpawnProcess as Process

Request = TypeVar("Request")
Result = TypeVar("Result")

DEADLINE_SECONDS = 300.0
"""Longest wait for any result of any worker."""

MAX_BATCH = 16
"""Maximum requests per message: small images are done faster than a message is delivered."""

_LINUX = sys.platform == "linux"
_IN_FLIGHT = 2  # messages per worker: one in progress, one waiting
_POLL_SECONDS = 0.1  # until a wait notices that its results are no longer wanted
_FILES_OF_A_WORKER = 4  # two ends of a pipe, and what signals its end; both while it starts
_FILES_TO_SPARE = 16
_KILL_SECONDS = 5.0  # a killed process that still hangs in a dead file system is abandoned

# What a socket certainly accepts while nobody reads. A longer message is sent only to an idle
# worker, which is reading: if it wrote a result while we write a request, each would wait for the
# other.
_SOCKET_BYTES = 2**15 if _LINUX else 2**12


class Bulk(NamedTuple):
    """A result with one large array, which is sent as it is in memory."""

    value: Any
    array: NDArray[Any]


class _Raised(NamedTuple):
    """Replacement of a result: what the function raised, and where."""

    error: Exception
    trace: str


class _Layout(NamedTuple):
    """Replacement of an array whose bytes follow."""

    shape: tuple[int, ...]
    dtype: str


class _Worker(Process):
    """A process that is always joined with a deadline, even by multiprocessing at exit."""

    def join(self, timeout: float | None = None) -> None:
        super().join(_KILL_SECONDS if timeout is None else timeout)


class WorkerPool(Generic[Request, Result]):
    """Run ``function`` in ``workers`` processes, or in this process with 0 workers.

    The processes are started here, forked on Linux: build a pool before threads are started, and
    in a thread that lives as long as the pool (Linux ends a child with the thread that forked it).

    Args:
        function: called with one request; ``map`` raises what it raises.
        workers: number of processes.
        setting: option that the user lowers to have fewer workers.
        start: called in each worker before its first request.

    Raises:
        MismatchError: this process may open too few files for this many workers.

    Example:
        >>> with WorkerPool(len, workers=0) as pool:
        ...     list(pool.map(["a", "bb"]))
        [1, 2]
    """

    def __init__(
        self,
        function: Callable[[Request], Result],
        *,
        workers: int,
        setting: str = "--workers",
        start: Callable[[], None] | None = None,
    ) -> None:
        self._function = function
        self._setting = setting
        self._connections: list[Connection] = []
        self._processes: list[_Worker] = []
        # Unanswered messages of each worker: indices of the iteration and of the message.
        self._at_work: list[deque[tuple[int, int]]] = [deque() for _ in range(workers)]
        # The message of each worker that is arriving and was interrupted in the middle.
        self._arriving: list[_Message | None] = [None] * workers
        self._iteration = 0
        # Even if nobody closes the pool, and before multiprocessing's own exit, which only sends
        # SIGTERM and then waits.
        self._finalizer = Finalize(self, _end, (self._processes,), exitpriority=100)
        allow_open_files(_FILES_OF_A_WORKER * workers + _FILES_TO_SPARE)
        for _ in range(workers):
            ours, theirs = multiprocessing.Pipe()
            # A fork inherits our ends of the pipes. While it holds one open, the worker at the
            # other end would not see the end of file when we die.
            inherited = [*self._connections, ours] if _LINUX else []
            process = _Worker(
                target=_serve, args=(function, start, theirs, inherited, os.getpid()), daemon=True
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

        ``discard`` or the next call ends an iteration early; results that workers are still
        computing for it are dropped when they arrive.

        Args:
            requests: consumed not far ahead of the results.
            batch: requests per message; use fewer if results are large, since up to four messages
                per worker may wait in memory.

        Raises:
            OutOfMemoryError: a worker was killed.
            FastrotError: a worker crashed.
            StorageError: no result came for ``DEADLINE_SECONDS``.
            Exception: whatever the function raised, in place of its result.
        """
        self.discard()
        if not self._at_work:
            return map(self._function, requests)
        return self._iterate(self._iteration, _batches(requests, batch))

    def discard(self) -> None:
        """End the current iteration, soon even if another thread waits for its next result."""
        self._iteration += 1

    def kill(self) -> None:
        """End the workers at once; a thread that waits for one of them gets an error."""
        self._finalizer()

    def close(self) -> None:
        """Stop the workers at once; safe to call twice. No thread may be in ``map``."""
        self.kill()
        for connection in self._connections:
            connection.close()

    def _iterate(self, iteration: int, batches: Iterator[list[Request]]) -> Iterator[Result]:
        done: dict[int, list[Any]] = {}
        sent = yielded = 0
        # Limits the memory of results that wait for an earlier one.
        ahead = 2 * _IN_FLIGHT * len(self._at_work)
        message = _encoded(next(batches, None))
        while iteration == self._iteration:
            while message is not None and sent - yielded < ahead:
                worker = min(range(len(self._at_work)), key=lambda w: len(self._at_work[w]))
                limit = _IN_FLIGHT if len(message) <= _SOCKET_BYTES else 1
                if len(self._at_work[worker]) >= limit:
                    break
                self._send(worker, message)
                self._at_work[worker].append((iteration, sent))
                sent += 1
                message = _encoded(next(batches, None))
            if message is None and yielded == sent:
                return
            if yielded not in done:
                done |= self._receive(iteration)
                continue
            for result in done.pop(yielded):
                if isinstance(result, _Raised):
                    raise _explained(result)
                yield result
                if iteration != self._iteration:
                    return
            yielded += 1

    def _send(self, worker: int, message: bytes | memoryview) -> None:
        try:
            self._connections[worker].send_bytes(message)
        except OSError:
            raise self._death(worker) from None

    def _receive(self, iteration: int) -> dict[int, list[Any]]:
        """Return results of one iteration by message number; drop those of others."""
        end = time.monotonic() + DEADLINE_SECONDS

        def wanted() -> bool:
            if time.monotonic() > end:
                raise StorageError(
                    f"no image was finished for {DEADLINE_SECONDS:.0f} s: the storage stalls"
                )
            return iteration == self._iteration

        while not (ready := wait(self._connections, timeout=_POLL_SECONDS)):
            if not wanted():
                return {}
        arrived = {}
        for worker, connection in enumerate(self._connections):
            if connection in ready:
                try:
                    message = self._arriving[worker] or _Message(connection)
                    self._arriving[worker] = None if message.read(wanted) else message
                except (EOFError, OSError):
                    raise self._death(worker) from None
                if self._arriving[worker] is not None:  # a worker that is stopped is not waited for
                    return {}
                asked_by, number = self._at_work[worker].popleft()
                if asked_by == iteration:
                    arrived[number] = message.results
        return arrived

    def _death(self, worker: int) -> FastrotError:
        process = self._processes[worker]
        process.join(1)
        code = process.exitcode
        if code == -signal.SIGKILL:
            return OutOfMemoryError(
                f"worker process {process.pid} was killed, most likely for lack of memory; "
                f"lower {self._setting}"
            )
        if code is not None and code < 0:
            return FastrotError(
                f"worker process {process.pid} crashed ({signal.strsignal(-code)}): a defect of an "
                "image library or of this machine, or somebody ended it; start again to continue"
            )
        return FastrotError(
            f"worker process {process.pid} ended with exit code {code}; its message is above"
        )


def _batches(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    remaining = iter(requests)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def _encoded(batch: list[Any] | None) -> memoryview | None:
    return None if batch is None else ForkingPickler.dumps(batch)


def _explained(raised: _Raised) -> Exception:
    if not isinstance(raised.error, FastrotError):  # a defect: show where
        raised.error.add_note(f"In a worker process:\n{raised.trace}")
    return raised.error


def _end(processes: Sequence[_Worker]) -> None:
    for process in processes:
        process.kill()  # works for stopped processes and those that ignore SIGTERM
    end = time.monotonic() + _KILL_SECONDS
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))


# The code that a worker runs


def _serve(
    function: Callable[[Any], Any],
    start: Callable[[], None] | None,
    pipe: Connection,
    inherited: list[Connection],
    parent: int,
) -> None:
    # Ctrl-C, Slurm and timeout(1) signal the whole process group: the parent decides what a
    # signal means, and a worker exits when it is killed or when its parent is gone.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(parent)
    for connection in inherited:
        connection.close()
    if start is not None:
        start()
    try:
        while True:
            _send_results(pipe, [_answer(function, request) for request in pipe.recv()])
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _answer(function: Callable[[Any], Any], request: Any) -> Any:
    try:
        return function(request)
    except Exception as error:  # of any type: the parent raises it
        raised = _Raised(error, traceback.format_exc())
        try:
            ForkingPickler.loads(ForkingPickler.dumps(raised))
        except Exception:  # it cannot be sent: this process exits with its traceback
            raise error from None
        return raised


def _send_results(pipe: Connection, results: list[Any]) -> None:
    arrays = []
    for i, result in enumerate(results):
        if isinstance(result, Bulk):
            array = np.ascontiguousarray(result.array)
            arrays.append(array)
            results[i] = Bulk(result.value, _Layout(array.shape, array.dtype.str))  # type: ignore[arg-type]
    pipe.send(results)
    for array in arrays:
        rest = _bytes_of(array)
        while rest:
            rest = rest[os.write(pipe.fileno(), rest) :]


class _Message:
    """The results that ``_send_results`` sends, of which some bytes may still have to arrive."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.results: list[Any] = pipe.recv()
        self._missing: deque[memoryview] = deque()
        for i, result in enumerate(self.results):
            if isinstance(result, Bulk):
                layout: Any = result.array
                array = np.empty(layout.shape, layout.dtype)
                self.results[i] = Bulk(result.value, array)
                self._missing.append(_bytes_of(array))

    def read(self, wanted: Callable[[], bool]) -> bool:
        """Return whether everything has arrived; stop when the rest is not wanted now."""
        while self._missing:
            rest = self._missing.popleft()
            while rest:
                if not self._pipe.poll(_POLL_SECONDS):
                    if wanted():
                        continue
                    self._missing.appendleft(rest)
                    return False
                # Not recv_bytes_into, which first collects the message in its own buffer.
                if not (count := os.readv(self._pipe.fileno(), [rest])):
                    raise EOFError
                rest = rest[count:]
        return True


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
