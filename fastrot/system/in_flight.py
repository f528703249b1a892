"""A bounded window of jobs that are submitted ahead, with their results in order.

Importing this module imports no torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Generic, TypeVar

from fastrot.errors import FastrotError

Item = TypeVar("Item")
Job = TypeVar("Job")
Result = TypeVar("Result")


class InFlight(Generic[Item, Job, Result]):
    """Submit jobs ahead of the one that the caller waits for.

    Args:
        submit: starts the job of an item and returns before it is done.
        finish: waits for a job and returns its result.
        ahead: number of jobs that run while the caller uses a result; 0: each job is finished
            before the next is submitted.

    Attributes:
        jobs: running jobs, oldest first, without the one being finished. After an iteration that
            ended early, the jobs that nobody waited for.

    Example:
        >>> list(InFlight(abs, str, ahead=2).map([-1, 2, -3]))
        ['1', '2', '3']
    """

    def __init__(
        self, submit: Callable[[Item], Job], finish: Callable[[Job], Result], *, ahead: int
    ) -> None:
        self._submit, self._finish = submit, finish
        self._ahead = ahead
        self.jobs: deque[Job] = deque()

    def map(self, items: Iterable[Item]) -> Generator[Result, None, None]:
        """Yield the result of each item, in order.

        Raises:
            FastrotError: from ``items`` or ``submit``, after the results of all jobs submitted
                before.
            Exception: any other error from these, and any error from ``finish``, at once.
        """
        failure: FastrotError | None = None
        remaining = iter(items)
        while failure is None:
            try:
                item = next(remaining)
            except StopIteration:
                break
            except FastrotError as error:
                failure = error
                break
            try:
                self.jobs.append(self._submit(item))
            except FastrotError as error:
                failure = error
            if len(self.jobs) > self._ahead:
                yield self._finish(self.jobs.popleft())
        while self.jobs:
            yield self._finish(self.jobs.popleft())
        if failure is not None:
            raise failure
