from __future__ import annotations

import threading
import time

import pytest

from fastrot.data import read_ahead
from fastrot.data.read_ahead import ReadAhead
from fastrot.errors import StorageError


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_results_come_in_order(threads, batch):
    def late(i):
        time.sleep(0.001 if i % 3 == 0 else 0)
        return i * i

    with ReadAhead(late, threads=threads) as ahead:
        assert list(ahead.map(range(101), batch=batch)) == [i * i for i in range(101)]
        assert list(ahead.map([], batch=batch)) == []


def test_it_runs_in_several_threads_and_not_far_ahead():
    started = []

    def note(i):
        started.append((i, threading.get_ident()))
        time.sleep(0.002)
        return i

    with ReadAhead(note, threads=3) as ahead:
        results = ahead.map(range(1000), batch=2)
        next(results)
        time.sleep(0.2)
        assert len(started) <= 2 * 4 * 3 + 2
        assert list(results) == list(range(1, 1000))
    assert len({thread for _, thread in started}) == 3
    assert threading.main_thread().ident not in {thread for _, thread in started}


def test_an_error_is_raised_in_its_turn():
    def fail(i):
        if i == 50:
            raise KeyError(i)
        return i

    with ReadAhead(fail, threads=2) as ahead:
        results = ahead.map(range(100), batch=5)
        assert [next(results) for _ in range(50)] == list(range(50))
        with pytest.raises(KeyError, match="50"):
            next(results)


def test_a_stalled_disk_is_an_error(monkeypatch):
    monkeypatch.setattr(read_ahead, "DEADLINE_SECONDS", 0.1)
    stalled = threading.Event()
    with ReadAhead(lambda _: stalled.wait(20), threads=1) as ahead:
        with pytest.raises(StorageError, match="the storage stalls"):
            next(ahead.map([1]))
        stalled.set()


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    with ReadAhead(lambda i: i, threads=4) as ahead:
        next(ahead.map(range(10**9)))
    ahead.close()
    assert threading.active_count() == before
