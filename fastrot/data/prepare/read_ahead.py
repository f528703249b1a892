"""Maps over files that are quickly read and hardly looked at, at the speed of the disk.

The calling thread reads them itself: handing bytes from thread to thread costs more than reading
them. Other threads tell the system which files come next, and do the few requests that turn out
to be long ones. For work that is all long ``system/worker_pool.py`` has processes. Importing this
module imports no torch.
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
_BATCHES_WAITING = 4  # results that wait for a long request ahead of them


class ReadAhead(Generic[Request, Result]):
    """Answer requests in order, quick ones here and long ones in threads.

    Args:
        quick: called here with one request; None: it is a long one.
        long: called in a thread with a long request.
        announce: called in a thread with requests that come soon; what it raises is lost.
        threads: number of threads; 0: all is done here, and nothing announced.

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
            requests: drawn not far ahead of the results.
            batch: requests that are announced at a time.

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
        """End the threads when they have done what they are at; safe to call twice."""
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
