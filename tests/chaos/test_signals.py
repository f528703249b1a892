"""Rows 3 and 29: a signal at any moment, a second one, Ctrl-C at a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from fastrot.runs.checkpoint import newest_checkpoint
from tests.chaos.conftest import TinyRun, pairs
from tests.conftest import FaultLog
from tests.program import ROOT, Ended, Server, poll

ENDLESS = pairs("train.max_steps=100000000", "train.epochs=1000000")


def status_of(out: Path) -> dict:
    return json.loads((out / "status.json").read_text())


def assert_stopped(ended: Ended, out: Path, tiny: TinyRun) -> None:
    """It said what came, saved if it had begun to train, and resumes to the same end."""
    assert "Traceback" not in ended.text
    if ended.code == 75:
        assert "--resume" in ended.line and "\n" not in ended.line
        status = status_of(out)
        if status != status_of(tiny.base):  # it came after the run was opened
            assert (status["state"], status["exit_code"]) == ("preempted", 75)
            assert tiny.newest(out) == status["step"]
    else:  # before the handler was there, or when all was done and the status says so
        assert ended.code == 0 or ended.code < 0, ended.text
        assert ended.code < 0 or status_of(out)["state"] == "done"
    tiny.finish(out)


def signal_at(
    call: str, count: int, name: str, tiny: TinyRun, out: Path, fault_log: FaultLog
) -> int:
    tiny.copy(out)
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal={name}:when={count}"]
    with fault_log(29 if name == "INT" else 3) as trial:
        ended = tiny.server.run(*tiny.resume(out), strace=inject)
        trial.seconds, trial.orphans = ended.injected, len(ended.orphans)
        assert f"--- SIG{name}" in ended.trace, f"{call} {count} was not reached"
        assert_stopped(ended, out, tiny)
        assert trial.orphans == 0
    return ended.code


def test_a_signal_during_some_calls(
    points: list[tuple[str, int]], tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    codes = set()
    for i, (call, count) in enumerate(points[:: len(points) // 3]):
        name = ("TERM", "INT", "USR2")[i % 3]
        codes.add(signal_at(call, count, name, tiny, tmp_path / f"{i}", fault_log))
    assert 75 in codes


OFFSETS = {"TERM": 0, "USR1": 1, "INT": 2}  # together every call: each takes a second


@pytest.mark.chaos
@pytest.mark.parametrize("name", OFFSETS)
def test_a_signal_during_every_call(
    name: str, points: list[tuple[str, int]], tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    for i, (call, count) in enumerate(points[OFFSETS[name] :: 3]):
        signal_at(call, count, name, tiny, tmp_path / f"{i}", fault_log)


def test_a_second_signal_ends_at_once(tiny: TinyRun, tmp_path: Path, fault_log: FaultLog) -> None:
    """In the middle of a step of several seconds; what was saved before stays."""
    out = tmp_path / "run"
    slow = pairs("model.width=64", "train.global_batch=1400", "train.checkpoint_steps=1000")
    with fault_log(3) as trial:
        program = tiny.server.start(*tiny.train(out, *slow))
        program.until((out / "checkpoints" / "step-00000000").exists, "training begins")
        program.signal(signal.SIGTERM)
        poll(lambda: pending(program.pid) == 0, "the first is delivered")
        since = program.signal(signal.SIGTERM)
        ended = program.end()
        trial.seconds, trial.orphans = ended.at - since, len(ended.orphans)
        assert ended.code in (-signal.SIGTERM, 128 + signal.SIGTERM), ended.text
        assert trial.seconds < 60 and trial.orphans == 0
        assert newest_checkpoint(out / "checkpoints").step == 0


def pending(pid: int) -> int:
    """Signals that a process has been sent and has not got, as a mask."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("ShdPnd:"):
            return int(line.split()[1], 16)
    return 0


def in_terminal(command: list[str], out: Path, presses: int) -> tuple[int, str, float, bool]:
    """Run in a terminal of its own, press Ctrl-C; code, text, seconds, terminal as before."""
    pid, master = pty.fork()
    if pid == 0:
        os.environ.update({"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
        os.execv(sys.executable, [sys.executable, *command])
    before = termios.tcgetattr(master)
    text = b""
    os.set_blocking(master, False)

    def read() -> bool:
        nonlocal text
        try:
            while chunk := os.read(master, 65536):
                text += chunk
        except BlockingIOError:
            return False
        except OSError:  # the other end is closed
            return True
        return True

    def logged() -> bool:
        read()
        path = out / "samples.jsonl"
        return path.exists() and path.stat().st_size > 0

    poll(logged, "training begins")
    since = time.monotonic()
    for _ in range(presses):
        os.write(master, b"\x03")
        time.sleep(0.05 if presses > 1 else 0)  # two that come together are one
    status = 0

    def gone() -> bool:
        nonlocal status
        read()
        done, status = os.waitpid(pid, os.WNOHANG)
        return done == pid

    poll(gone, "it ends")
    seconds = time.monotonic() - since
    read()
    same = termios.tcgetattr(master) == before
    os.close(master)
    return os.waitstatus_to_exitcode(status), text.decode(errors="replace"), seconds, same


def test_ctrl_c_at_a_terminal(tiny: TinyRun, tmp_path: Path, fault_log: FaultLog) -> None:
    """The whole foreground group gets it: the loader's workers too."""
    out = tmp_path / "run"
    command = ["-m", "fastrot", *tiny.train(out, *ENDLESS, *pairs("data.workers=2"),
                                            "--loader", "reference")]  # fmt: skip
    with fault_log(29) as trial:
        code, text, trial.seconds, same = in_terminal(command, out, 1)
        assert code == 75, text
        assert "Traceback" not in text and "stopped by SIGINT" in text
        assert same, "the terminal was left in another mode"
        # What hides the cursor must show it again.
        assert text.rfind("\x1b[?25h") >= text.rfind("\x1b[?25l")
        assert tiny_status(out) == ("preempted", 75)
        trial.orphans = len(those_who_write_to(out))
        assert trial.orphans == 0


def tiny_status(out: Path) -> tuple[str, int]:
    status = status_of(out)
    return status["state"], status["exit_code"]


def those_who_write_to(out: Path) -> list[str]:
    """Processes whose command line names the run folder (workers have that of their parent)."""
    done = subprocess.run(["pgrep", "-f", re.escape(str(out))], capture_output=True, text=True)
    return done.stdout.split()


@pytest.mark.chaos
@pytest.mark.parametrize("moment", range(8))
def test_signals_at_random_moments(
    moment: int, server: Server, tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    """From the start of the program on, every 0.1 s, with workers."""
    out = tiny.copy(tmp_path / "run")
    arguments = tiny.resume(out, "--loader", "reference", *pairs("data.workers=2"), *ENDLESS)
    with fault_log(3) as trial:
        program = server.start(*arguments)
        time.sleep(0.1 * moment)
        since = program.signal(signal.SIGTERM)
        ended = program.end()
        trial.seconds, trial.orphans = ended.at - since, len(ended.orphans)
        assert ended.code in (75, -signal.SIGTERM), ended.text
        assert "Traceback" not in ended.text and trial.orphans == 0
        assert tiny.newest(out) >= 2
