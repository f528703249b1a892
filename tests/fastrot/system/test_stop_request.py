"""Requests to stop: where the main thread cannot hear them, and in children."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fastrot.errors import PreemptedError
from fastrot.system.stop_request import StopRequest

# A second lock of a mutex by its holder never returns, and no signal interrupts it: so does a
# file system that does not answer.
HANGING = """
    import ctypes
    from fastrot.system.stop_request import StopRequest
    with StopRequest() as stop:
        stop.training = True
        mutex = ctypes.create_string_buffer(64)
        lock = ctypes.CDLL(None).pthread_mutex_lock
        lock(mutex)
        print("hangs", flush=True)
        lock(mutex)
"""


def pending(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(line for line in status.splitlines() if line.startswith("ShdPnd:"))


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_process_that_hangs_in_a_call(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HANGING)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "hangs\n"
        asleep = 0
        while asleep < 50:  # in a row: in the call, and not just on the way to it
            asleep = asleep + 1 if state(process.pid) == "S" else 0
            time.sleep(0.002)
        process.send_signal(signal.SIGUSR1)  # another kind: each is asked for once
        process.send_signal(number)
        while not pending(process.pid).endswith("0" * 16):
            pass
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(number)
        assert process.wait(300) == 128 + number
    finally:
        process.kill()
        process.wait()


def test_before_and_after_everything_is_as_it_was() -> None:
    before = signal.getsignal(signal.SIGTERM)
    for _ in range(3):
        with pytest.raises(PreemptedError, match="stopped by SIGTERM before the first step"):
            with StopRequest():
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == before
        assert signal.set_wakeup_fd(-1) == -1


def test_while_training_only_a_flag_is_set() -> None:
    with StopRequest() as stop:
        stop.training = True
        signal.raise_signal(signal.SIGUSR1)
        assert stop and stop.signal_name == "SIGUSR1"


def test_where_nothing_can_be_raised_the_flag_stops_the_first_step(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with StopRequest() as stop:
        Finalized()
        assert stop
    assert capfd.readouterr().err == ""
