"""Rows 5, 6, 18 and 30: the disk is full, read-only, or fails in any call."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.chaos.conftest import TinyRun, leftovers, pairs
from tests.chaos.mounted import mounted
from tests.conftest import FaultLog
from tests.program import Ended

MANY = pairs("train.max_steps=100")


def used(folder: Path) -> int:
    usage = shutil.disk_usage(folder)
    return usage.total - usage.free


def assert_says_where(ended: Ended, code: int) -> None:
    assert ended.code == code, ended.text
    assert "Traceback" not in ended.text
    assert ended.line.startswith("fastrot: ") and "/" in ended.line, ended.text


def test_a_full_disk_ends_the_run_only_after_three_misses(
    tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    with mounted(tmp_path / "disk", 2**30) as disk, fault_log(5) as trial:
        tiny.copy(disk.seen / "run")
        disk.remount(f"size={used(disk.seen) + 2**20}")
        program = tiny.server.start(*tiny.resume(disk.folder / "run", *MANY),
                                    namespace=disk.namespace)  # fmt: skip
        program.until(lambda: "not written" in program.output.read_text(), "a save fails")
        since = program.output.stat().st_mtime
        ended = program.end()
        trial.seconds = ended.at - since
        assert_says_where(ended, 74)
        assert ended.text.count("warning: checkpoint at step") == 2  # the third is the end
        assert "older checkpoints are intact" in ended.line and "MiB free" in ended.line
        assert "MiB are needed" in ended.line
        assert tiny.newest(disk.seen / "run") == 2
        assert leftovers(disk.seen / "run") == []
        disk.remount("size=1g")
        done = tiny.server.run(*tiny.resume(disk.folder / "run"), namespace=disk.namespace)
        assert done.code == 0, done.text
        tiny.assert_same_end(disk.seen / "run")


def test_a_disk_that_was_full_for_a_while_costs_nothing_but_warnings(
    tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    with mounted(tmp_path / "disk", 2**30) as disk, fault_log(5) as trial:
        tiny.copy(disk.seen / "run")
        disk.remount(f"size={used(disk.seen) + 2**20}")
        program = tiny.server.start(*tiny.resume(disk.folder / "run"), namespace=disk.namespace)
        program.until(lambda: "not written" in program.output.read_text(), "a save fails")
        disk.remount("size=1g")
        ended = program.end()
        assert ended.code == 0, ended.text
        trial.seconds = ended.seconds
        tiny.assert_same_end(disk.seen / "run")


@pytest.mark.chaos
def test_a_file_that_may_not_grow(tiny: TinyRun, tmp_path: Path, fault_log: FaultLog) -> None:
    """A short write, then EFBIG."""
    out = tiny.copy(tmp_path / "run")
    with fault_log(5) as trial:
        ended = tiny.server.run(*tiny.resume(out), limits={"FSIZE": 300_000})
        assert_says_where(ended, 74)
        assert tiny.newest(out) == 2 and leftovers(out) == []
        trial.seconds = ended.seconds
        tiny.finish(out)


@pytest.mark.parametrize("begin", ["new", "resume"])
def test_a_read_only_disk_is_found_before_the_first_step(
    begin: str, tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    with mounted(tmp_path / "disk", 2**30) as disk, fault_log(6) as trial:
        out = disk.folder / "run"
        tiny.copy(disk.seen / "run")
        before = sorted(path.name for path in (disk.seen / "run").rglob("*"))
        disk.remount("ro")
        arguments = tiny.resume(out) if begin == "resume" else tiny.train(disk.folder / "new")
        ended = tiny.server.run(*arguments, namespace=disk.namespace)
        trial.seconds = ended.seconds
        assert_says_where(ended, 74)
        assert "step 3" not in ended.text and "Read-only file system" in ended.line
        assert before == sorted(path.name for path in (disk.seen / "run").rglob("*"))


@pytest.mark.chaos
def test_data_and_cache_on_a_read_only_disk(
    tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    """The stamp of a checked file has no place; training needs none."""
    with mounted(tmp_path / "disk", 2**30) as disk, fault_log(6) as trial:
        shutil.copytree(tiny.data.parent, disk.seen / "data")
        for stamp in (disk.seen / "data").glob("*.checked.json"):
            stamp.unlink()
        disk.remount("ro")
        out = tiny.copy(tmp_path / "run")
        data = ("--data", str(disk.folder / "data" / tiny.data.name))
        cache = {"XDG_CACHE_HOME": str(disk.folder / "cache"), "HOME": str(disk.folder)}
        ended = tiny.server.run(*tiny.resume(out, *data), namespace=disk.namespace,
                                environment=cache)  # fmt: skip
        assert ended.code == 0, ended.text
        trial.seconds = ended.seconds
        tiny.assert_same_end(out)


def test_a_log_that_may_not_grow_stops_nothing(
    tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    """metrics.jsonl fills its disk; its last line was torn by a crash before."""
    out = tiny.copy(tmp_path / "run")
    line = json.dumps({"step": 1, "kind": "train", "note": "x" * 1000}) + "\n"
    with (out / "metrics.jsonl").open("a") as file:
        file.write(line * 3000 + '{"step": 2, "ki')
    limit = 3000 * len(line)  # less than that file, more than a checkpoint
    with fault_log(30) as trial:
        ended = tiny.server.run(*tiny.resume(out), limits={"FSIZE": limit})
        assert ended.code == 0, ended.text
        assert ended.text.count("a line was lost") == 1
        trial.seconds = ended.seconds
        tiny.assert_same_end(out)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        assert len(lines) >= 3000 and all(json.loads(line)["step"] <= 4 for line in lines)


# --- any call may fail ----------------------------------------------------------------------


def fail_at(
    call: str, count: int, error: str, tiny: TinyRun, out: Path, fault_log: FaultLog
) -> None:
    """One call fails once: nothing is lost, and the run continues or says what happened."""
    tiny.copy(out)
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={count}"]
    with fault_log(5 if error == "ENOSPC" else 18) as trial:
        ended = tiny.server.run(*tiny.resume(out), strace=inject)
        where = f"{call} {count} {error}: {ended.text}"
        assert "(INJECTED)" in ended.trace, where
        trial.seconds = ended.injected
        assert "Traceback" not in ended.text, where
        assert ended.code in (0, 74), where
        told = any(word in ended.text for word in ("warning", "lost", "cannot remove"))
        injected = next(line for line in ended.trace.splitlines() if "(INJECTED)" in line)
        if ended.code == 0 and not told and "run.lock" not in injected:  # it may stay: nobody's
            tiny.assert_same_end(out)
        newest = tiny.newest(out)
        trial.lost = int(newest < 2)
        assert newest >= 2, where
        if "a line was lost" not in ended.text:  # of the log of samples itself
            tiny.finish(out)


@pytest.fixture(scope="module")
def failing(points: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Calls that a disk may let fail: a lock is none."""
    return [point for point in points if point[0] != "flock"]


def test_some_calls_fail(
    failing: list[tuple[str, int]], tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    for i, (call, count) in enumerate(failing[3 :: len(failing) // 3]):
        fail_at(call, count, ("ENOSPC", "EIO", "ESTALE")[i % 3], tiny, tmp_path / str(i), fault_log)


OFFSETS = {"ENOSPC": 0, "EIO": 1, "ESTALE": 2}  # together every call: each takes a second


@pytest.mark.chaos
@pytest.mark.parametrize("error", OFFSETS)
def test_every_call_fails(
    error: str,
    failing: list[tuple[str, int]],
    tiny: TinyRun,
    tmp_path: Path,
    fault_log: FaultLog,
) -> None:
    failed = []
    for i, (call, count) in enumerate(failing[OFFSETS[error] :: 3]):
        try:
            fail_at(call, count, error, tiny, tmp_path / str(i), fault_log)
        except AssertionError as problem:
            failed.append(f"{call} {count}: {problem}")
    assert not failed, "\n".join(failed)
