"""A bounded window of jobs: some are submitted ahead, and their results come in order.

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
        submit: starts the job of an item, and returns before it is done.
        finish: waits for a job.
        ahead: jobs that are at work while the caller looks at a result; 0: none, each is finished
            before the next is submitted.

    Attributes:
        jobs: those at work, the oldest first, without the one that is being finished. After an
            iteration that ended early, those that nobody waited for.

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
            FastrotError: ``items`` or ``submit`` raised it: in its turn, after the results of all
                that was submitted before.
            Exception: any other one of theirs, and whatever ``finish`` raised, at once.
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
