"""The launcher: exit codes, restarts, signals, and nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastrot.distributed.launch import launch

KILLED = "rank 1 was killed by SIGKILL"
AGAIN = (
    "unless you ended it, dmesg tells if memory ran out; run the same command again (train: with "
    "--resume once there is a checkpoint)"
)
RANK = "import os, sys, time, signal; rank = int(os.environ['RANK']); "


def python(code: str) -> list[str]:
    return [sys.executable, "-c", RANK + code]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", 0),
        ("sys.exit(0 if rank == 0 else 65)", 65),
        ("sys.exit(69 if rank == 0 else 71)", 71),  # its own reason, not what others saw
        ("sys.exit(69)", 69),
        ("sys.exit(75)", 75),
        ("rank == 1 and os.kill(os.getpid(), 9)", 69),
        ("rank == 1 and os.kill(os.getpid(), 11); sys.exit(69)", 69),
    ],
)
def test_it_leaves_with_the_code_of_the_rank_that_failed(code: str, expected: int) -> None:
    assert launch(python(code), 2) == expected


def test_ranks_are_told_who_they_are(tmp_path: Path) -> None:
    code = (
        f"open('{tmp_path}/' + str(rank), 'w').write(' '.join(os.environ[name] for name in "
        "('WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'FASTROT_STORE')))"
    )
    assert launch(python(code), 3) == 0
    words = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [each[:3] for each in words] == [["3", str(rank), "3"] for rank in range(3)]
    stores = {each[3] for each in words}
    assert len(stores) == 1 and not Path(stores.pop()).parent.exists()


@pytest.mark.parametrize("restarts", [0, 1, 2])
def test_a_lost_rank_starts_all_anew_and_only_so_often(tmp_path: Path, restarts: int) -> None:
    code = (
        f"open('{tmp_path}/starts', 'a').write(str(rank) + ' ' + ' '.join(sys.argv[1:]) + chr(10));"
        "rank == 1 and os.kill(os.getpid(), 9)"
    )
    said: list[str] = []
    assert (
        launch(python(code), 2, restarts=restarts, again=lambda: ("more",), say=said.append) == 69
    )
    lines = (tmp_path / "starts").read_text().splitlines()
    assert len(lines) == 2 * (restarts + 1)
    assert sum("more" in line for line in lines) == 2 * restarts
    assert said == [
        *(f"{KILLED}; restarting all ranks (restart {n} of {restarts})"
          for n in range(1, restarts + 1)),
        f"fastrot: {KILLED}; {AGAIN}",
    ]  # fmt: skip


def test_a_rank_that_is_killed_while_it_starts_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else knows its process yet: the other rank waits for it without a word."""
    monkeypatch.setattr("fastrot.distributed.launch._LEAVE_SECONDS", 0.5)
    code = (
        f"open('{tmp_path}/starting', 'w').write(str(os.getpid())) if rank == 1 else None; "
        f"os.rename('{tmp_path}/starting', '{tmp_path}/pid') if rank == 1 else None; "
        "time.sleep(600)"
    )

    def kill() -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.02)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    said: list[str] = []
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert launch(python(code), 2, say=said.append) == 69
    killer.join()
    assert said == [f"fastrot: {KILLED}; {AGAIN}"]


def test_what_a_rank_has_printed_is_not_said_twice() -> None:
    """The launcher is silent if another rank knew, and if the failed rank said why itself."""
    said: list[str] = []
    told = (
        "from fastrot.distributed.error_reporting import line_to_print; "
        "from fastrot.errors import RankLostError; "
        "rank == 1 and os.kill(os.getpid(), 9); "
        "line_to_print(RankLostError('rank 1 is gone')); sys.exit(69)"
    )
    assert launch(python(told), 2, say=said.append) == 69
    assert launch(python("sys.exit(65)"), 2, say=said.append) == 65
    assert not said


def test_a_rank_that_never_ends_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastrot.distributed.launch._FINISH_SECONDS", 0.5)
    said: list[str] = []
    assert launch(python("rank == 1 and time.sleep(600)"), 2, say=said.append) == 69
    assert said == [f"fastrot: rank 1 did not end after the others, and was killed; {AGAIN}"]


def test_what_a_restart_would_not_mend_is_not_restarted() -> None:
    said: list[str] = []
    assert launch(python("sys.exit(65)"), 2, restarts=3, say=said.append) == 65
    assert not said


def test_a_signal_reaches_every_rank_once(tmp_path: Path) -> None:
    code = (
        f"ready = '{tmp_path}/ready' + str(rank); "
        "count = []; signal.signal(signal.SIGUSR2, lambda *_: count.append(1)); "
        "open(ready, 'w').close(); end = time.time() + 30\n"
        "while not count and time.time() < end: time.sleep(0.02)\n"
        "time.sleep(0.3); sys.exit(75 if len(count) == 1 else 1)"
    )
    program = (
        "import sys; from fastrot.distributed.launch import launch; "
        f"sys.exit(launch([sys.executable, '-c', {RANK + code!r}], 2, restarts=5))"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    end = time.monotonic() + 300
    while not all((tmp_path / f"ready{rank}").exists() for rank in range(2)):
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(300) == 75


def test_a_rank_that_stays_is_killed_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastrot.distributed.launch._LEAVE_SECONDS", 1.0)
    code = (
        "import subprocess; rank == 1 and sys.exit(65); "
        f"child = subprocess.Popen(['sleep', '600']); "
        f"open('{tmp_path}/pid', 'w').write(str(child.pid)); "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.kill(os.getpid(), signal.SIGSTOP)"
    )
    began = time.monotonic()
    assert launch(python(code), 2) == 65
    assert time.monotonic() - began < 300  # it would sleep 600
    child = (tmp_path / "pid").read_text()
    end = time.monotonic() + 300
    while os.path.exists(f"/proc/{child}") and time.monotonic() < end:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not os.path.exists(f"/proc/{child}")
