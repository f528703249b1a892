from __future__ import annotations

import threading
import time

import pytest

from fastrot.data.prepare import read_ahead
from fastrot.data.prepare.read_ahead import ReadAhead
from fastrot.errors import StorageError


def even(i):
    return i * i if i % 2 == 0 else None


def silent(soon):
    """Announces nothing."""


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_results_come_in_order(threads, batch):
    def late(i):
        time.sleep(0.001 if i % 3 == 0 else 0)
        return i * i

    for quick in (even, lambda i: None, lambda i: i * i):
        with ReadAhead(quick, late, silent, threads=threads) as ahead:
            assert list(ahead.map(range(101), batch=batch)) == [i * i for i in range(101)]
            assert list(ahead.map([], batch=batch)) == []


def test_quick_ones_are_done_here_and_long_ones_in_threads():
    where = {}

    def quick(i):
        where[i] = threading.get_ident()
        return i if i % 5 else None

    def long(i):
        time.sleep(0.005)
        where[i] = threading.get_ident()
        return i

    with ReadAhead(quick, long, silent, threads=2) as ahead:
        assert list(ahead.map(range(60), batch=8)) == list(range(60))
    here = threading.get_ident()
    assert {i for i, thread in where.items() if thread != here} == set(range(0, 60, 5))
    assert len(set(where.values())) == 3


def test_a_long_one_holds_up_only_so_many():
    done = []
    go_on = threading.Event()

    def quick(i):
        done.append(i)
        return i or None

    with ReadAhead(quick, lambda _: go_on.wait(20), silent, threads=1) as ahead:
        results = ahead.map(range(1000), batch=3)
        threading.Timer(0.2, go_on.set).start()
        next(results)
        assert len(done) == 4 * 3 + 1


def test_what_comes_soon_is_announced_and_no_more():
    announced = []

    def announce(soon):
        announced.extend(soon)
        raise OSError("lost")

    with ReadAhead(even, str, announce, threads=1) as ahead:
        results = ahead.map(range(0, 10_000, 2), batch=5)
        for _ in range(7):
            next(results)
        time.sleep(0.2)
        assert announced == list(range(0, 2 * 5 * 17, 2))
        assert len(list(results)) == 5000 - 7
    assert announced == sorted(set(announced)), "in order; what is already due is left out"


@pytest.mark.parametrize("place", ["quick", "long"])
def test_an_error_is_raised(place):
    def fail(i):
        if i == 50:
            raise KeyError(i)
        return i

    quick, long = (fail, str) if place == "quick" else (lambda i: None, fail)
    with ReadAhead(quick, long, silent, threads=2) as ahead:
        results = ahead.map(range(100), batch=5)
        with pytest.raises(KeyError, match="50"):
            list(results)


def test_a_stalled_disk_is_an_error(monkeypatch):
    monkeypatch.setattr(read_ahead, "DEADLINE_SECONDS", 0.1)
    stalled = threading.Event()
    with ReadAhead(lambda _: None, lambda _: stalled.wait(20), silent, threads=1) as ahead:
        with pytest.raises(StorageError, match="the storage stalls"):
            next(ahead.map([1]))
        stalled.set()


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    with ReadAhead(even, str, silent, threads=4) as ahead:
        next(ahead.map(range(10**9)))
    ahead.close()
    assert threading.active_count() == before
