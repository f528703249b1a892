"""The commit protocol: what is found after a kill, a full disk or a flipped bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import xxhash

from fastrot.errors import BadDataError, MismatchError, StorageError
from fastrot.runs.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)

RUN = "0123456789abcdef"


def tensors(step: int) -> dict[str, torch.Tensor]:
    values = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
    return {
        "model.weight": values.to(memory_format=torch.channels_last),
        "model.count": torch.tensor(step),
        "model.half": values[0].half(),
        "optimizer.empty": torch.empty(0),
    }


def save(folder: Path, step: int) -> Path:
    exports = {"backbone.safetensors": {"weight": tensors(step)["model.weight"]}}
    return save_checkpoint(folder, step, tensors(step), {"s": step}, run_id=RUN, exports=exports)


def assert_is(checkpoint: Checkpoint | None, step: int) -> None:
    assert checkpoint is not None and checkpoint.step == step
    assert checkpoint.state == {"s": step}
    for name, value in tensors(step).items():
        assert torch.equal(checkpoint.tensors[name], value)
        assert checkpoint.tensors[name].dtype == value.dtype


def rewrite_commit(path: Path, changes: dict[str, object]) -> None:
    """Forge a commit record whose own hash is right."""
    commit = json.loads((path / "COMMIT.json").read_text())
    del commit["record"]
    commit |= changes
    record = xxhash.xxh3_128_hexdigest(json.dumps(commit, sort_keys=True).encode())
    (path / "COMMIT.json").write_text(json.dumps({**commit, "record": record}))


def test_newest_is_found_and_equal(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none", RUN) is None
    for step in (2, 100_000_000, 30):
        save(tmp_path, step)
    assert_is(newest_checkpoint(tmp_path, RUN), 100_000_000)
    assert [int(path.name[5:]) for path in list_checkpoints(tmp_path)] == [2, 30, 100_000_000]


def test_saving_a_step_again_keeps_the_good_one_and_replaces_a_bad_one(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    before = (path / "COMMIT.json").stat().st_mtime_ns
    save(tmp_path, 3)
    assert (path / "COMMIT.json").stat().st_mtime_ns == before
    (path / "state.json").write_text("{}")
    assert_is(load_checkpoint(save(tmp_path, 3), run_id=RUN), 3)


def test_a_flipped_bit_anywhere_is_noticed_and_the_one_before_is_used(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    for path in sorted(newest.iterdir()):
        original = path.read_bytes()
        for position in range(0, len(original), max(1, len(original) // 40)):
            damaged = bytearray(original)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            found = newest_checkpoint(tmp_path, RUN)
            # A flip inside COMMIT.json may hit white space, which changes nothing.
            assert found is not None
            assert_is(found, found.step)
            if path.name != "COMMIT.json":
                assert found.step == 1, f"{path.name}[{position}] was not noticed"
        path.write_bytes(original)
    assert_is(newest_checkpoint(tmp_path, RUN), 2)


@pytest.mark.parametrize("name", ["COMMIT.json", "state.json", "tensors.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_missing_empty_or_cut_file_falls_back(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-7])
    assert_is(newest_checkpoint(tmp_path, RUN), 1)


def test_no_valid_checkpoint_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "COMMIT.json").unlink()
    with pytest.raises(StorageError, match="none of its 1 checkpoints is valid"):
        newest_checkpoint(tmp_path, RUN)


def test_other_run_and_newer_format_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    with pytest.raises(BadDataError, match="belongs to run"):
        load_checkpoint(path, run_id="f" * 16)
    rewrite_commit(path, {"format": 99})
    with pytest.raises(MismatchError, match="format 99"):
        newest_checkpoint(tmp_path, RUN)


def test_commit_record_cannot_name_files_outside(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    files = json.loads((path / "COMMIT.json").read_text())["files"]
    rewrite_commit(path, {"files": {**files, "../../etc/passwd": {"bytes": 1, "xxh3_128": "0"}}})
    with pytest.raises(BadDataError, match="passwd"):
        load_checkpoint(path)


def test_prune_keeps_the_newest_and_clears_what_dead_writers_left(tmp_path: Path) -> None:
    for step in range(5):
        save(tmp_path, step)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".step-00000009.tmp-{dead.pid}-abcd").mkdir()
    (tmp_path / f".step-00000009.tmp-{os.getpid()}-abcd").mkdir()
    prune_checkpoints(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".step-00000009.tmp-{os.getpid()}-abcd",
        "step-00000003",
        "step-00000004",
    ]


def test_prune_counts_only_what_a_resume_would_take(tmp_path: Path) -> None:
    """Planted, torn and abandoned ones push out none of ours."""
    for step in (1, 2, 3, 7, 8, 9):
        save(tmp_path, step)
    rewrite_commit(tmp_path / "step-00000007", {"run_id": "f" * 16})
    os.truncate(tmp_path / "step-00000008" / "state.json", 1)
    prune_checkpoints(tmp_path, 2, run_id=RUN, last=3)
    kept = [int(path.name[5:]) for path in list_checkpoints(tmp_path)]
    assert kept == [2, 3, 7, 8, 9]
    prune_checkpoints(tmp_path, 2, run_id=RUN)
    assert [int(path.name[5:]) for path in list_checkpoints(tmp_path)] == [3, 7, 8, 9]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.chaos
@pytest.mark.fault(1)
def test_kill_at_every_system_call_of_a_save_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL at the n-th call of each kind that can change the disk, for every n."""
    script = tmp_path / "save.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys; from pathlib import Path; import torch
            from fastrot.runs.checkpoint import save_checkpoint
            folder = Path(sys.argv[1]); values = {{"model.w": torch.full((64,), 2.0)}}
            (folder.parent / "marker").touch()  # calls before this one are not ours
            save_checkpoint(folder, 2, values, {{"s": 2}}, run_id="{RUN}")
            """
        )
    )
    probe = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("ptrace is not allowed here")

    def run(folder: Path, inject: list[str]) -> tuple[int, str]:
        trace = folder.parent / "trace"
        done = subprocess.run(
            ["strace", "-f", "-o", str(trace), *inject, sys.executable, str(script), str(folder)],
            capture_output=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        return done.returncode, trace.read_text()

    base = tmp_path / "base" / "checkpoints"
    save_checkpoint(base, 1, {"model.w": torch.full((64,), 1.0)}, {"s": 1}, run_id=RUN)
    calls = ("mkdir", "fsync", "rename", "ftruncate")
    code, trace = run(base, ["-e", f"trace={','.join(calls)}"])
    assert code == 0
    shutil.rmtree(base / "step-00000002")
    points = [(c, n) for c in calls for n in range(1, trace.count(f" {c}(") + 1)]
    assert len(points) >= 7, trace
    seen = set()
    for call, count in points:
        work = tmp_path / f"{call}-{count}" / "checkpoints"
        shutil.copytree(base, work)
        code, _ = run(
            work, ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={count}"]
        )
        assert code in (0, -signal.SIGKILL, 128 + signal.SIGKILL)
        found = newest_checkpoint(work, RUN)
        assert found is not None and found.step in (1, 2)
        assert torch.equal(found.tensors["model.w"], torch.full((64,), float(found.step)))
        seen.add(found.step)
    assert seen == {1, 2}


def test_full_disk_leaves_the_old_checkpoint_and_no_litter(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import resource, sys, torch; from pathlib import Path
        from fastrot.runs.checkpoint import save_checkpoint; from fastrot.errors import StorageError
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            save_checkpoint(Path({str(tmp_path)!r}), 2, {{"w": torch.ones(100000)}}, {{}},
                            run_id="{RUN}")
        except StorageError as error:
            print(error); sys.exit(error.exit_code)
        """
    )
    save(tmp_path, 1)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 74, done.stderr
    assert "older checkpoints are intact" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert_is(newest_checkpoint(tmp_path, RUN), 1)
