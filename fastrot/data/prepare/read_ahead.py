"""Processes files that take little more than reading, at the speed of the disk.

The calling thread reads them itself, because handing bytes between threads costs more than reading
them. Other threads tell the system which files come next, and handle the few requests that turn out
to be long. For work that is mostly long, ``system/worker_pool.py`` has processes. Importing this
module does not import torch.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from fastrot.errors import StorageError
from fastrot.system.worker_pool import DEADLINE_SECONDS, MAX_BATCH

Request = TypeVar("Request")
Result = TypeVar("Result")

_BATCHES_ANNOUNCED = 16
_BATCHES_WAITING = 4  # batches of results that may wait for a long request ahead of them


class ReadAhead(Generic[Request, Result]):
    """Answers requests in order, quick ones in the calling thread and long ones in other threads.

    Args:
        quick: called in the calling thread with each request; returns None for a long one.
        long: called in another thread with a long request.
        announce: called in another thread with upcoming requests; its exceptions are lost.
        threads: number of threads; 0: the calling thread does everything, without announcements.

    Example:
        >>> table = {1: "one"}
        >>> with ReadAhead(table.get, str, lambda soon: None, threads=2) as ahead:
        ...     list(ahead.map([1, 2]))
        ['one', '2']
    """

    def __init__(
        self,
        quick: Callable[[Request], Result | None],
        long: Callable[[Request], Result],
        announce: Callable[[Sequence[Request]], None],
        *,
        threads: int,
    ) -> None:
        self._quick, self._long, self._announce = quick, long, announce
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
            requests: the requests, read a limited number of batches ahead of the results.
            batch: number of requests that are announced at a time.

        Raises:
            StorageError: a long request took ``DEADLINE_SECONDS``.
            Exception: whatever ``quick`` or ``long`` raised.
        """
        waiting: deque[Result | Future[Result]] = deque()
        for request in self._announced(iter(requests), batch):
            result = self._quick(request)
            if result is not None:
                waiting.append(result)
            elif self._pool is None:
                waiting.append(self._long(request))
            else:
                waiting.append(self._pool.submit(self._long, request))
            while waiting and (_is_ready(waiting[0]) or len(waiting) > _BATCHES_WAITING * batch):
                yield _settled(waiting.popleft())
        while waiting:
            yield _settled(waiting.popleft())

    def close(self) -> None:
        """Stop the threads once their current requests are done; safe to call twice."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _announced(self, requests: Iterator[Request], size: int) -> Iterator[Request]:
        if self._pool is None:
            yield from requests
            return
        ahead: deque[list[Request]] = deque()
        while True:
            while len(ahead) < _BATCHES_ANNOUNCED:
                batch = list(itertools.islice(requests, size))
                if not batch:
                    break
                self._pool.submit(self._announce, batch)
                ahead.append(batch)
            if not ahead:
                return
            yield from ahead.popleft()


def _is_ready(result: Result | Future[Result]) -> bool:
    return not isinstance(result, Future) or result.done()


def _settled(result: Result | Future[Result]) -> Result:
    if not isinstance(result, Future):
        return result
    try:
        return result.result(timeout=DEADLINE_SECONDS)
    except TimeoutError:
        raise StorageError(
            f"no image was read for {DEADLINE_SECONDS:.0f} s: the storage stalls"
        ) from None
