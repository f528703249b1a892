from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fastrot.errors import BadDataError, FastrotError, OutOfMemoryError, StorageError
from fastrot.system import worker_pool as workers
from fastrot.system.worker_pool import Bulk, WorkerPool


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


def bulk(x):
    return Bulk(x, np.full((x % 5, 70_000, 2), x, dtype=np.int32))


@pytest.mark.parametrize("count", [0, 2])
def test_large_arrays_arrive_whole_and_may_be_kept(count):
    with WorkerPool(bulk, workers=count) as pool:
        results = list(pool.map(range(40), batch=3))
    for x, (value, array) in enumerate(results):
        assert (value, array.dtype) == (x, np.int32)
        assert array.shape == (x % 5, 70_000, 2) and (array == x).all()
        array += 1  # it is ours


def test_requests_and_results_larger_than_a_pipe_do_not_block():
    """A worker that writes a result reads no request: two writers would wait for each other."""
    with WorkerPool(slow_sum, workers=2) as pool:
        requests = [np.full(200_000, x) for x in range(20)]
        results = [int(array[0]) for _, array in pool.map(requests, batch=1)]
    assert results == list(range(20))


def slow_sum(request):
    return Bulk(None, request * 1)


@pytest.mark.parametrize("taken", [1, 2, 5, 30])
def test_a_new_iteration_drops_what_an_older_one_left(taken):
    with WorkerPool(slow_square, workers=2) as pool:
        older = pool.map(range(1000), batch=1)
        assert [next(older) for _ in range(taken)] == [x * x for x in range(taken)]
        assert list(pool.map(range(5, 25), batch=1)) == [x * x for x in range(5, 25)]
        assert next(older, None) is None, "a newer iteration ends an older one"
        assert list(pool.map(range(3))) == [0, 1, 4]


def test_discard_ends_the_wait_of_another_thread():
    with WorkerPool(time.sleep, workers=1) as pool:
        waiting = threading.Thread(target=lambda: list(pool.map([20])))
        waiting.start()
        time.sleep(0.3)
        pool.discard()
        waiting.join(2)
        assert not waiting.is_alive()


def divide(x):
    return 100 // x


def refuse(x):
    raise BadDataError(f"sample {x} is broken")


def raise_what_cannot_travel(x):
    class Local(Exception):
        pass

    raise Local("the text")


def test_an_exception_of_the_function_is_raised_at_its_place():
    with WorkerPool(divide, workers=2) as pool:
        results = pool.map([50, 20, 0, 10])
        assert [next(results), next(results)] == [2, 5]
        with pytest.raises(ZeroDivisionError) as caught:
            next(results)
        assert "in divide" in caught.value.__notes__[0], "a defect says where it is"
        assert list(pool.map([25, 50])) == [4, 2], "the workers continue"


def test_a_fastrot_error_travels_with_its_one_line():
    with WorkerPool(refuse, workers=1) as pool, pytest.raises(BadDataError) as caught:
        list(pool.map([7]))
    assert str(caught.value) == "sample 7 is broken"
    assert not hasattr(caught.value, "__notes__")


def test_an_exception_that_cannot_travel_is_shown_by_the_worker(capfd):
    with (
        WorkerPool(raise_what_cannot_travel, workers=1) as pool,
        pytest.raises(FastrotError, match="exit code 1"),
    ):
        list(pool.map([7]))
    assert "the text" in capfd.readouterr().err


def die_at_40(x):
    if x == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def crash_at_40(x):
    if x == 40:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # not pytest's faulthandler
        os.kill(os.getpid(), signal.SIGSEGV)
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
    [
        (die_at_40, OutOfMemoryError, "was killed, .*lower --workers"),
        (crash_at_40, FastrotError, r"crashed \(Segmentation fault\)"),
        (exit_at_40, FastrotError, "exit code 3"),
    ],
)
def test_a_dead_worker_ends_the_wait_at_once(function, error, message):
    start = time.monotonic()
    with (
        pytest.raises(error, match=message) as caught,
        WorkerPool(function, workers=2) as pool,
    ):
        list(pool.map(range(1000)))
    assert type(caught.value) is error
    assert time.monotonic() - start < 60


def test_a_silent_worker_ends_at_the_deadline(monkeypatch):
    monkeypatch.setattr(workers, "DEADLINE_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(StorageError, match="stalls"), WorkerPool(sleep_at_40, workers=2) as pool:
        list(pool.map(range(1000)))
    assert time.monotonic() - start < 60


PARENT = """
import time
from fastrot.system.worker_pool import WorkerPool
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
    deadline = time.monotonic() + 25  # they would sleep for a minute
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)


STOPPED = """
import os, signal, sys, time
from fastrot.system.worker_pool import WorkerPool
pool = WorkerPool(abs, workers=2)
print(*(p.pid for p in pool._processes), flush=True)
list(pool.map(range(5)))
os.kill(pool._processes[0].pid, signal.SIGSTOP)
if sys.argv[1] == "close":
    pool.close()
"""


@pytest.mark.parametrize("end", ["close", "leave"])
def test_a_stopped_worker_delays_neither_close_nor_exit(end):
    start = time.monotonic()
    parent = subprocess.run(
        [sys.executable, "-c", STOPPED, end], capture_output=True, text=True, timeout=300
    )
    assert (parent.returncode, parent.stderr) == (0, "")
    assert time.monotonic() - start < 60
    assert not any(alive(int(pid)) for pid in parent.stdout.split())


def test_signals_to_the_group_are_the_parents_to_interpret():
    with WorkerPool(slow_square, workers=2) as pool:
        results = pool.map(range(200))
        next(results)
        pids = [process.pid for process in pool._processes]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            for pid in pids:
                os.kill(pid, number)
        assert list(results) == [x * x for x in range(1, 200)]
        assert all(map(alive, pids))
    assert not any(map(alive, pids))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def enormous(x):
    return Bulk(x, np.full(20_000_000, x, np.uint8))  # more than any pipe holds


def test_a_worker_that_is_stopped_in_the_middle_of_a_result_delays_nobody():
    """Neither the end of an iteration nor the next one's results, once it runs again."""
    with WorkerPool(enormous, workers=1) as pool:
        results = pool.map(range(3), batch=1)
        assert next(results).value == 0
        (worker,) = pool._processes
        assert pool._connections[0].poll(60)
        time.sleep(0.2)  # it has begun to send the next result, and waits for its bytes to be read
        os.kill(worker.pid, signal.SIGSTOP)
        waiting = threading.Thread(target=lambda: list(results))
        waiting.start()
        time.sleep(0.5)
        pool.discard()
        waiting.join(60)
        assert not waiting.is_alive()
        os.kill(worker.pid, signal.SIGCONT)
        for number, result in enumerate(pool.map(range(2), batch=1)):
            assert result.value == number and (result.array == number).all()
