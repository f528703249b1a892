"""Run a generator ahead of its consumer, in a thread that neither hangs nor outlives it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

from fastrot.errors import StorageError

T = TypeVar("T")

_POLL_SECONDS = 0.5


class Prefetcher(Generic[T], Iterator[T]):
    """Iterate over a generator, computing up to ``depth`` items ahead.

    An exception of the generator is raised by the ``next()`` that would have returned its item.
    The generator is closed in the thread that ran it.

    Args:
        items: generator to run.
        depth: maximum number of finished items in the queue; one more may be in progress.
        deadline: longest wait for an item, in seconds.

    Example:
        >>> with Prefetcher((i * i for i in range(3)), depth=1, deadline=10) as squares:
        ...     list(squares)
        [0, 1, 4]
    """

    def __init__(self, items: Generator[T, None, None], *, depth: int, deadline: float) -> None:
        self._deadline = deadline
        self._queue: queue.Queue[tuple[T] | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        self._finished = False
        self._thread = threading.Thread(
            target=self._run, args=(items,), daemon=True, name="fastrot-prefetch"
        )
        self._thread.start()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __next__(self) -> T:
        """Return the next item.

        Raises:
            StorageError: no item came within the deadline.
        """
        if self._finished:
            raise StopIteration
        try:
            item = self._queue.get(timeout=self._deadline)
        except queue.Empty:
            raise StorageError(
                f"no batch for {self._deadline:.0f} s: the storage of the dataset stalls"
            ) from None
        if isinstance(item, tuple):
            return item[0]
        self._finished = True
        raise item

    def close(self) -> None:
        """Stop the thread and wait for it; safe to call twice."""
        self._finished = True
        self._stop.set()
        end = time.monotonic() + self._deadline
        while self._thread.is_alive() and time.monotonic() < end:
            try:
                self._queue.get_nowait()  # wakes the thread if it waits for room
            except queue.Empty:
                self._thread.join(timeout=_POLL_SECONDS / 10)

    def _run(self, items: Generator[T, None, None]) -> None:
        try:
            try:
                for item in items:
                    if not self._put((item,)):
                        return
            finally:
                items.close()
            self._put(StopIteration())
        except BaseException as error:  # the consumer raises it; no error may be lost here
            self._put(error)

    def _put(self, item: tuple[T] | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False
