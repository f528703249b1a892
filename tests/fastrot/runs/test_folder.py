from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastrot.errors import MismatchError, StorageError, UsageError
from fastrot.runs.folder import RunFolder, how_killed, read_status
from fastrot.system import lock as runlock
from fastrot.system.files import write_atomic
from fastrot.system.jsonl import JsonLines, read_json_lines
from fastrot.system.lock import RunLock
from fastrot.system.process_identity import ProcessIdentity

HOLD = """
import sys, time
from pathlib import Path
from fastrot.runs.folder import RunFolder
with RunFolder(sys.argv[1], resume=True):
    print("held", flush=True)
    time.sleep(60)
"""

RACE = """
import sys, time
from pathlib import Path
from fastrot.errors import MismatchError
from fastrot.system.lock import RunLock
folder = Path(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    try:
        lock = RunLock(folder / line.strip() / "run.lock")
    except MismatchError:
        print("refused", flush=True)
    else:
        print("won", flush=True)
        sys.stdin.readline()  # hold until every contender has answered
        lock.release()
        print("released", flush=True)
        continue
    sys.stdin.readline()
    print("released", flush=True)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline().strip() in ("held", "ready")
    return process


def write_holder(folder: Path, *, age: float = 0.0, **changes: object) -> Path:
    lock = folder / "run.lock"
    record = vars(ProcessIdentity.of_this_process()) | changes
    lock.write_text(json.dumps(record))
    os.utime(lock, (time.time() - age, time.time() - age))
    return lock


# --- the folder -----------------------------------------------------------------------------


def test_a_new_run_is_locked_and_records_its_state(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "runs" / "a") as run:
        assert not read_status(run.path)
        assert (run.path / "run.lock").exists()
        run.write_config("train: {}\n")
        run.write_status("running", step=7, epoch=0.5)
    status = read_status(run.path)
    assert (status["state"], status["step"], status["epoch"]) == ("running", 7, 0.5)
    assert status["run_id"] == run.run_id
    assert sorted(p.name for p in run.path.iterdir()) == ["config.yaml", "status.json"]


def test_resume_keeps_the_run_id_and_a_fresh_start_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as first:
        first.write_status("preempted", step=3, epoch=0.1, exit_code=75)
    with pytest.raises(UsageError, match=r"already holds a run; add --resume") as refused:
        RunFolder(tmp_path / "run")
    assert refused.value.exit_code == 64
    with RunFolder(tmp_path / "run", resume=True) as second:
        assert second.run_id == first.run_id


def test_a_run_that_never_began_may_be_started_again(tmp_path: Path) -> None:
    """A typo in the first command must not stand in the way of the second."""
    with RunFolder(tmp_path / "run") as first:
        first.write_config("data: {}\n")
        first.write_status("failed", step=0, epoch=0, exit_code=64)
    with RunFolder(tmp_path / "run"):
        pass
    (tmp_path / "run" / "checkpoints" / "step-00000000").mkdir(parents=True)
    with pytest.raises(UsageError, match="add --resume"):
        RunFolder(tmp_path / "run")


def test_a_killed_run_is_told_as_killed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(HOLD, str(out))
    (out / "status.json").write_text('{"state": "running", "step": 7, "epoch": 0.5}\n')
    (out / "checkpoints" / "step-00000007").mkdir(parents=True)
    assert how_killed(out) == ""  # it is at work
    process.kill()
    process.wait()
    line = how_killed(out)
    assert f"{out}: the run was killed (process {process.pid} on" in line
    assert "its last checkpoint is at step 7" in line
    with pytest.raises(UsageError, match=r"was killed .*step 7.*add --resume"):
        RunFolder(out)
    with RunFolder(out, resume=True) as run:
        assert run.killed == line
        assert how_killed(out) == ""
        run.write_status("done", step=7, epoch=1)
    assert how_killed(out) == ""


@pytest.mark.parametrize(("age", "silent"), [(60, False), (600, True)])
def test_a_run_of_another_machine_is_killed_once_it_is_silent(
    tmp_path: Path, age: float, silent: bool
) -> None:
    (tmp_path / "status.json").write_text('{"state": "running", "step": 7, "epoch": 0.5}\n')
    write_holder(tmp_path, age=age, host="elsewhere", pid=11)
    assert ("no sign of process 11 on elsewhere for 10 minutes" in how_killed(tmp_path)) == silent


def test_resume_touches_no_folder_that_is_not_a_runs(tmp_path: Path) -> None:
    (tmp_path / ".mydraft.tmp").write_text("precious")
    (tmp_path / ".d.probe").mkdir()
    with pytest.raises(UsageError, match="is not a run folder"):
        RunFolder(tmp_path, resume=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".d.probe", ".mydraft.tmp"]


def test_run_id_survives_the_loss_of_the_status(tmp_path: Path) -> None:
    commit = tmp_path / "run" / "checkpoints" / "step-00000004" / "COMMIT.json"
    commit.parent.mkdir(parents=True)
    commit.write_text(json.dumps({"run_id": "f" * 16}))
    with RunFolder(tmp_path / "run", resume=True) as run:
        assert run.run_id == "f" * 16


def test_a_folder_of_something_else_is_left_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        RunFolder(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        RunFolder(tmp_path / "run")


def test_an_unwritable_place_is_found_at_once() -> None:
    with pytest.raises(StorageError, match="cannot be written") as refused:
        RunFolder("/proc/fastrot-run")
    assert refused.value.exit_code == 74


def test_leftovers_of_a_killed_process_are_reaped(tmp_path: Path) -> None:
    (tmp_path / ".status.json.0a1b2c3d.tmp").write_text("half")
    (tmp_path / ".0a1b2c3d.probe").mkdir()
    with RunFolder(tmp_path) as run:
        assert not read_status(run.path)
        assert [p.name for p in tmp_path.iterdir()] == ["run.lock"]


def test_a_folder_that_others_may_write_is_not_resumed(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.write_status("running", step=1, epoch=0)
    run.path.chmod(0o777)
    with pytest.raises(MismatchError, match=r"planted.*chmod go-w"):
        RunFolder(run.path, resume=True)
    run.path.chmod(0o755)
    run.checkpoints.mkdir()
    run.checkpoints.chmod(0o775)
    with pytest.raises(MismatchError, match=r"checkpoints: other users may write"):
        RunFolder(run.path, resume=True)
    run.checkpoints.chmod(0o755)
    RunFolder(run.path, resume=True).close()


def test_damaged_status_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(b'{"run_id": "12')
    assert read_status(tmp_path) == {}
    assert read_status(tmp_path / "missing") == {}


def test_a_failed_atomic_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    with pytest.raises(OSError, match="directory"):
        write_atomic(tmp_path / "folder", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "folder"]


# --- the lock -------------------------------------------------------------------------------


def test_a_second_process_is_told_who_holds_the_run(tmp_path: Path) -> None:
    process = start(HOLD, str(tmp_path))
    try:
        for resume in (True, False):
            with pytest.raises(MismatchError) as refused:
                RunFolder(tmp_path, resume=resume)
            holder = f"{socket.gethostname()}:{process.pid}"
            assert f"the run in {tmp_path} is held by {holder} since " in str(refused.value)
        assert refused.value.exit_code == 78
    finally:
        process.kill()
        process.wait()


def test_kill_9_needs_no_clean_up(tmp_path: Path) -> None:
    process = start(HOLD, str(tmp_path))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "run.lock").exists()
    began = time.monotonic()
    RunFolder(tmp_path, resume=True).close()
    assert time.monotonic() - began < 20


def test_an_orphaned_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "run.lock")
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        time.sleep(0.1)
        lock.release()
        RunLock(tmp_path / "run.lock").release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_of_many_starters_exactly_one_wins(tmp_path: Path) -> None:
    contenders = [start(RACE, str(tmp_path)) for _ in range(3)]
    try:
        for turn in range(36):
            folder = tmp_path / str(turn)
            folder.mkdir()
            if turn % 3 == 1:  # stale: its process is gone
                write_holder(folder, pid=2**22 + 1, process_start="1")
            if turn % 3 == 2:  # stale: of another machine, silent for too long
                write_holder(folder, host="elsewhere", age=runlock.LEASE_SECONDS + 5)
            if turn % 3 == 2 and turn > 6:
                continue  # each of these costs a second by design
            for process in contenders:
                process.stdin.write(f"{turn}\n")
            for process in contenders:
                process.stdin.flush()
            answers = [process.stdout.readline().strip() for process in contenders]
            assert sorted(answers) == ["refused", "refused", "won"], turn
            for process in contenders:
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline().strip() == "released"
            assert not (folder / "run.lock").exists()
    finally:
        for process in contenders:
            process.kill()
            process.wait()


def test_a_pid_that_was_given_away_again_is_not_the_holder(tmp_path: Path) -> None:
    write_holder(tmp_path, process_start="1")  # our own pid, but another start time
    RunLock(tmp_path / "run.lock").release()


def test_a_beating_lock_of_another_machine_is_respected(tmp_path: Path) -> None:
    path = write_holder(tmp_path, host="elsewhere", pid=1)
    beat = f"import os, time\nwhile True: time.sleep(0.3); os.utime({str(path)!r})"
    other = subprocess.Popen([sys.executable, "-c", beat])
    try:
        with pytest.raises(MismatchError, match="held by elsewhere:1"):
            RunLock(path)
    finally:
        other.kill()
        other.wait()
    assert json.loads(path.read_text())["host"] == "elsewhere"


def test_a_silent_lock_of_another_machine_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runlock, "LEASE_SECONDS", 1.5)
    path = write_holder(tmp_path, host="elsewhere", pid=1)
    with caplog.at_level(logging.WARNING), RunLock(path) as lock:
        lock.assert_held()
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert "held by elsewhere:1" in caplog.text
    assert not path.exists()


def test_an_empty_lock_of_a_process_killed_while_creating_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runlock, "LEASE_SECONDS", 1.0)
    (tmp_path / "run.lock").touch()
    RunLock(tmp_path / "run.lock").release()


def test_a_lock_names_its_holder_before_anybody_can_see_it(tmp_path: Path) -> None:
    """A process that is killed anywhere while it takes a lock leaves none that names nobody."""
    watch = (
        "import os, sys\n"
        f"lock = {str(tmp_path / 'run.lock')!r}\n"
        "print('ready', flush=True)\n"
        "seen = 0\n"
        "while seen < 20:\n"
        "    try:\n"
        "        text = open(lock).read()\n"
        "    except FileNotFoundError:\n"
        "        continue\n"
        "    assert 'nonce' in text, text\n"
        "    seen += 1\n"
    )
    watcher = subprocess.Popen([sys.executable, "-c", watch], stdout=subprocess.PIPE)
    assert watcher.stdout is not None and watcher.stdout.readline() == b"ready\n"
    while watcher.poll() is None:
        RunLock(tmp_path / "run.lock").release()
    assert watcher.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_without_hard_links_a_lock_is_made_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with RunLock(tmp_path / "run.lock") as lock:
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()
        assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_was_being_written_is_reaped_and_a_start_too(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.write_status("failed", step=3, epoch=0, exit_code=70)
    unfinished = run.checkpoints / ".step-00000004.tmp-1-abcd"
    unfinished.mkdir(parents=True)
    (unfinished / "tensors.safetensors").write_text("x")
    (tmp_path / ".run.lock.0123abcd.tmp").touch()
    with RunFolder(tmp_path, resume=True):
        assert not unfinished.exists()
        assert not (tmp_path / ".run.lock.0123abcd.tmp").exists()


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlock, "HEARTBEAT_SECONDS", 0.05)
    with RunLock(tmp_path / "run.lock") as lock:
        before = lock.path.stat().st_mtime_ns
        time.sleep(0.5)
        assert lock.path.stat().st_mtime_ns > before


@pytest.mark.parametrize("loss", ["removed", "replaced"])
def test_a_lost_lock_is_noticed_and_left_to_its_new_holder(tmp_path: Path, loss: str) -> None:
    with RunFolder(tmp_path) as run:
        run.assert_held()
        (tmp_path / "run.lock").unlink()
        if loss == "replaced":
            write_holder(tmp_path, host="elsewhere", pid=9)
        with pytest.raises(MismatchError, match="removed" if loss == "removed" else "elsewhere:9"):
            run.assert_held()
    assert (tmp_path / "run.lock").exists() == (loss == "replaced")


# --- the lines ------------------------------------------------------------------------------


def test_lines_are_valid_json_in_order(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "m.jsonl")
    log.append({"step": 1, "loss": 0.5, "ids": [3, 1]})
    log.append({"step": 2, "loss": float("nan"), "nested": {"a": float("inf")}, "l": [-1e999]})
    log.flush_to_disk()
    log.close()
    log.close()
    assert list(read_json_lines(tmp_path / "m.jsonl")) == [
        {"step": 1, "loss": 0.5, "ids": [3, 1]},
        {"step": 2, "loss": None, "nested": {"a": None}, "l": [None]},
    ]
    assert list(read_json_lines(tmp_path / "none.jsonl")) == []


def test_each_line_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = JsonLines(tmp_path / "m.jsonl")
    calls: list[bytes] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: calls.append(data) or write(fd, data))
    log.append({"step": 1})
    assert calls == [b'{"step": 1}\n']


@pytest.mark.parametrize("last_step", [0, 2, 3, 9])
def test_cut_back_keeps_the_steps_up_to_the_checkpoint(tmp_path: Path, last_step: int) -> None:
    log = JsonLines(tmp_path / "m.jsonl")
    log.append({"event": "start"})
    for step in (1, 2, 3, 4):
        log.append({"step": step})
        log.append({"note": f"after {step}"})
    log.cut_back(last_step)
    log.append({"step": last_step + 1})
    expected: list[dict[str, object]] = [{"event": "start"}]
    for step in (1, 2, 3, 4):
        if step <= last_step:
            expected += [{"step": step}, {"note": f"after {step}"}]
    assert list(read_json_lines(log.path)) == [*expected, {"step": last_step + 1}]


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b'{"step": 3}', b"\0\0\0\n", b"[1]\n"])
def test_a_damaged_tail_is_ignored_and_removed(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + torn)
    assert [r["step"] for r in read_json_lines(path)] == [1, 2]
    log = JsonLines(path)
    log.cut_back(10)
    log.append({"step": 3})
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_damage_in_the_middle_costs_only_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\xff": 2}\n{"step": 3}\n')
    JsonLines(path).cut_back(3)
    assert [r["step"] for r in read_json_lines(path)] == [1, 3]


def test_a_full_disk_warns_once_and_goes_on() -> None:
    warnings: list[str] = []
    log = JsonLines("/dev/full", warn=warnings.append)
    for step in range(3):
        log.append({"step": step})
    assert len(warnings) == 1
    assert "No space left" in warnings[0]


SHORT_WRITE = """
import resource, signal, sys
from fastrot.system.jsonl import JsonLines
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
log = JsonLines(sys.argv[1], warn=print)
for step in range(20):
    log.append({"step": step})
"""


def test_a_line_that_fits_only_in_part_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", SHORT_WRITE, str(path)], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == 1
    assert path.read_bytes().endswith(b"}\n")
    assert [r["step"] for r in read_json_lines(path)] == list(range(8))


def test_a_log_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be opened"):
        JsonLines(tmp_path)
