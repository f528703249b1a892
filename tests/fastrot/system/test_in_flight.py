"""A window of jobs: how far ahead it submits, in which order it answers and fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastrot.errors import BadDataError
from fastrot.system.in_flight import InFlight


def window(events: list[str], *, ahead: int) -> InFlight[int, int, int]:
    def submit(item: int) -> int:
        events.append(f"submit {item}")
        if item < 0:
            raise BadDataError(f"item {item}")
        return item

    def finish(job: int) -> int:
        events.append(f"finish {job}")
        return 10 * job

    return InFlight(submit, finish, ahead=ahead)


@pytest.mark.parametrize("ahead", [0, 1, 3, 9])
def test_results_come_in_order_and_no_more_jobs_are_ahead_than_allowed(ahead: int) -> None:
    events: list[str] = []
    seen = []
    for result in (jobs := window(events, ahead=ahead)).map(range(5)):
        seen.append(result)
        submitted = sum(event.startswith("submit") for event in events)
        assert submitted == min(5, len(seen) + ahead) and len(jobs.jobs) == submitted - len(seen)
    assert seen == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_failure_of_the_items_or_of_a_submission_waits_for_its_turn(ahead: int) -> None:
    def broken() -> Iterator[int]:
        yield from (1, 2, 3)
        raise BadDataError("item -4")

    for items in (broken(), iter([1, 2, 3, -4, 5])):
        events: list[str] = []
        seen = []
        with pytest.raises(BadDataError, match="item -4"):
            for result in window(events, ahead=ahead).map(items):
                seen.append(result)
        assert seen == [10, 20, 30] and "submit 5" not in events


def test_a_defect_is_raised_at_once() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    jobs = window([], ahead=3)
    with pytest.raises(ZeroDivisionError):
        next(jobs.map(broken()))
    assert list(jobs.jobs) == [1]


def test_an_iteration_that_ends_early_leaves_its_jobs() -> None:
    jobs = window([], ahead=2)
    results = jobs.map(range(9))
    assert next(results) == 0
    results.close()
    assert list(jobs.jobs) == [1, 2]
