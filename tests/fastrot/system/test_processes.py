from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastrot.system.processes import ask_tool, end_children, signal_children, start_child

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
PARENT = """
import sys
from fastrot.system.processes import start_child
child = start_child([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.wait()
    end = time.monotonic() + 300
    while _runs(child):
        assert time.monotonic() < end
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # a container without an init that reaps keeps its entry


def test_a_child_has_a_group_of_its_own_and_hears_what_it_is_told(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        child = start_child(SLEEP, environment={"MARK": "1"}, output=log)
    assert os.getpgid(child.pid) == child.pid != os.getpgrp()
    signal_children([child], signal.SIGUSR1)
    assert child.wait(300) == -signal.SIGUSR1
    signal_children([child], signal.SIGUSR1)  # it is gone: nothing happens
    end_children([child])


def test_an_interrupt_while_a_child_starts_is_raised_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The child has ended by then: whoever started it never gets to hold it."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def interrupted(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        signal.raise_signal(signal.SIGINT)
        started.append(popen(*words, **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_child(SLEEP)
    assert [child.poll() for child in started] == [-signal.SIGKILL]


def test_children_have_time_to_end_by_themselves(tmp_path: Path) -> None:
    orderly = start_child([sys.executable, "-c", "input()"], pipes=True)
    deaf = start_child(SLEEP, pipes=True)
    for child in (orderly, deaf):
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.close()
    end_children([orderly, deaf], patience=5.0)
    assert (orderly.returncode, deaf.returncode) == (0, -signal.SIGKILL)


def test_a_tool_is_asked() -> None:
    assert ask_tool([sys.executable, "-c", "print(3)"], seconds=60) == "3\n"
    assert ask_tool(["false"], seconds=60) is None
    assert ask_tool(["no-such-tool"], seconds=60) is None
    assert ask_tool(["sleep", "60"], seconds=0.1) is None


def test_all_are_ended(tmp_path: Path) -> None:
    children = [start_child(SLEEP, output=subprocess.DEVNULL) for _ in range(2)]  # type: ignore[arg-type]
    end_children(children)
    assert [child.returncode for child in children] == [-signal.SIGKILL] * 2
