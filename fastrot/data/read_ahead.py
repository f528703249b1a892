"""Threads that map a function over requests, in order, a little ahead of whoever takes them.

For work that waits for a disk and hardly computes; ``workers.py`` has processes for the rest.
Importing this module imports no torch.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from fastrot.data.workers import DEADLINE_SECONDS, MAX_BATCH
from fastrot.errors import StorageError

Request = TypeVar("Request")
Result = TypeVar("Result")

_BATCHES_A_THREAD = 4  # at work or waiting to be taken


class ReadAhead(Generic[Request, Result]):
    """Run ``function`` in ``threads`` threads; with 0 threads in the calling one.

    Args:
        function: called with one request, by several threads at once.
        threads: number of threads.

    Example:
        >>> with ReadAhead(len, threads=2) as ahead:
        ...     list(ahead.map(["a", "bb"]))
        [1, 2]
    """

    def __init__(self, function: Callable[[Request], Result], *, threads: int) -> None:
        self._function = function
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        if threads:
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fastrot-read")

    def __enter__(self) -> ReadAhead[Request, Result]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def map(self, requests: Iterable[Request], *, batch: int = MAX_BATCH) -> Iterator[Result]:
        """Yield the result of each request, in the order of the requests.

        Args:
            requests: drawn not far ahead of the results.
            batch: requests that a thread takes at a time.

        Raises:
            StorageError: no result came for ``DEADLINE_SECONDS``.
            Exception: whatever the function raised, at the first result of its batch.
        """
        if self._pool is None:
            return map(self._function, requests)
        return self._iterate(self._pool, iter(requests), batch)

    def close(self) -> None:
        """End the threads when they have done what they are at; safe to call twice."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _iterate(
        self, pool: ThreadPoolExecutor, requests: Iterator[Request], size: int
    ) -> Iterator[Result]:
        waiting: deque[Future[list[Result]]] = deque()
        while True:
            while len(waiting) < _BATCHES_A_THREAD * self._threads:
                batch = list(itertools.islice(requests, size))
                if not batch:
                    break
                waiting.append(pool.submit(self._answer, batch))
            if not waiting:
                return
            try:
                results = waiting.popleft().result(timeout=DEADLINE_SECONDS)
            except TimeoutError:
                raise StorageError(
                    f"no image was read for {DEADLINE_SECONDS:.0f} s: the storage stalls"
                ) from None
            yield from results

    def _answer(self, batch: list[Request]) -> list[Result]:
        return [self._function(request) for request in batch]
