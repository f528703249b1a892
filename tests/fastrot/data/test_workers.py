from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from fastrot.data import workers
from fastrot.data.workers import WorkerPool
from fastrot.errors import FastrotError, OutOfMemoryError, StorageError


def slow_square(x):
    time.sleep(0.001 * (x % 7))
    return x * x


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("n", [0, 1, 16, 17, 500])
def test_results_come_in_the_order_of_the_requests(count, n):
    with WorkerPool(slow_square, workers=count) as pool:
        assert list(pool.map(range(n))) == [x * x for x in range(n)]
        assert list(pool.map(range(5))) == [0, 1, 4, 9, 16]


def test_requests_are_not_drawn_far_ahead_of_the_results():
    drawn = []
    with WorkerPool(slow_square, workers=2) as pool:
        results = pool.map(drawn.append(x) or x for x in range(10_000))
        next(results)
        assert len(drawn) <= 16 * 8


def large(x):
    return bytes(3_000_000)


def test_results_larger_than_a_pipe_do_not_block():
    with WorkerPool(large, workers=2) as pool:
        assert sum(map(len, pool.map(range(100)))) == 300_000_000


def test_batches_may_be_smaller():
    with WorkerPool(slow_square, workers=2) as pool:
        assert list(pool.map(range(50), batch=1)) == [x * x for x in range(50)]


def die_at_40(x):
    if x == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def exit_at_40(x):
    if x == 40:
        os._exit(3)
    return x


def sleep_at_40(x):
    if x == 40:
        time.sleep(60)
    return x


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [(die_at_40, OutOfMemoryError, "was killed"), (exit_at_40, FastrotError, "exit code 3")],
)
def test_a_dead_worker_ends_the_wait_at_once(function, error, message):
    start = time.monotonic()
    with pytest.raises(error, match=message), WorkerPool(function, workers=2) as pool:
        list(pool.map(range(1000)))
    assert time.monotonic() - start < 5


def test_a_silent_worker_ends_at_the_deadline(monkeypatch):
    monkeypatch.setattr(workers, "DEADLINE_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(StorageError, match="stalls"), WorkerPool(sleep_at_40, workers=2) as pool:
        list(pool.map(range(1000)))
    assert time.monotonic() - start < 5


PARENT = """
import time
from fastrot.data.workers import WorkerPool
with WorkerPool(time.sleep, workers=3) as pool:
    print(*(p.pid for p in pool._processes), flush=True)
    list(pool.map([30] * 6))
"""


def test_workers_die_with_a_killed_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 2
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
