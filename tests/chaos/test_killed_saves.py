"""Row 1: kill -9 at every system call by which a training run changes the disk."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.chaos.conftest import TinyRun
from tests.chaos.program import need_strace
from tests.conftest import FaultLog

CALLS = (
    *("mkdir", "openat", "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "rename"),
    *("renameat", "renameat2", "unlink", "unlinkat", "rmdir", "link", "symlink", "flock"),
)
RENAMED = re.compile(r'rename\("[^"]*", "[^"]*/step-(\d+)"\) += 0')


def changes(trace: str) -> list[tuple[str, int]]:
    """Calls of a trace that change the disk: name, and its number among those of this name."""
    counts = dict.fromkeys(CALLS, 0)
    points = []
    for line in trace.splitlines():
        match = re.match(r"[\d.]+ (\w+)\((.*)", line)
        if match is None or match[1] not in counts:
            continue
        call, rest = match[1], match[2]
        counts[call] += 1
        reads = call == "openat" and not re.search(r"O_WRONLY|O_RDWR|O_CREAT", rest)
        if not (reads or rest.startswith(("1,", "2,"))):  # to the terminal
            points.append((call, counts[call]))
    return points


@pytest.fixture(scope="module")
def points(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int]]:
    """Of a resume from step 2 to step 4, from its first call to its last."""
    need_strace()
    out = tiny.copy(tmp_path_factory.mktemp("points") / "run")
    done = tiny.server.run(*tiny.resume(out), strace=["-e", f"trace={','.join(CALLS)}"])
    assert done.code == 0, done.text
    tiny.assert_same_end(out)
    found = changes(done.trace)
    assert len(found) > 80 and len(set(found)) == len(found), done.trace
    return found


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
