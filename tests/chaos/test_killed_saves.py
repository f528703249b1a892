"""Row 1: kill -9 at every system call by which a training run changes the disk."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.chaos.conftest import TinyRun
from tests.conftest import FaultLog

RENAMED = re.compile(r'rename\("[^"]*", "[^"]*/step-(\d+)"\) += 0')


def kill_at(call: str, count: int, tiny: TinyRun, out: Path, fault_log: FaultLog) -> int:
    """Returns the step that was found after the kill."""
    tiny.copy(out)
    inject = ["-e", f"trace={call},rename", "-e", f"inject={call}:signal=KILL:when={count}"]
    with fault_log(1) as trial:
        killed = tiny.server.run(*tiny.resume(out), strace=inject)
        assert killed.code == -signal.SIGKILL, f"{call} {count}: {killed.text}"
        trial.seconds, trial.orphans = killed.injected, len(killed.orphans)
        committed = max([2, *(int(step) for step in RENAMED.findall(killed.trace))])
        newest = tiny.newest(out)
        trial.lost = int(newest < committed)
        assert newest >= committed, f"{call} {count}: step {newest} of {committed}"
        tiny.finish(out)
        assert trial.orphans == 0
    return newest


def test_some_system_calls(
    points: list[tuple[str, int]], tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    found = set()
    for call, count in points[:: len(points) // 5]:
        found.add(kill_at(call, count, tiny, tmp_path / f"{call}-{count}", fault_log))
    assert {2, 3} <= found  # before and after a commit


@pytest.mark.chaos
@pytest.mark.parametrize("part", range(4))
def test_every_system_call(
    part: int, points: list[tuple[str, int]], tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    for call, count in points[part::4]:
        kill_at(call, count, tiny, tmp_path / f"{call}-{count}", fault_log)
