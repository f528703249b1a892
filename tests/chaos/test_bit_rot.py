"""Rows 20, 21 and 23: what is on the disk is not what was written, or of another run or version."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.conftest import TinyRun, pairs
from tests.conftest import FaultLog
from tests.fastrot.runs.test_checkpoint import rewrite_commit
from tests.program import need_strace

CHAOS = pytest.mark.chaos


def newest_folder(out: Path, step: int = 2) -> Path:
    return out / "checkpoints" / f"step-{step:08d}"


def flip(path: Path, position: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def tensor_places(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor's bytes are in a safetensors file: first byte and length."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: (8 + length + entry["data_offsets"][0],
               entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    }  # fmt: skip


@pytest.mark.parametrize("step", [16, pytest.param(1, marks=pytest.mark.chaos)])
def test_a_flipped_bit_in_every_tensor(
    step: int, tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    """Each in turn: the one before is taken instead, and no bit comes through."""
    out = tiny.copy(tmp_path / "run")
    file = newest_folder(out) / "tensors.safetensors"
    places = {name: place for name, place in tensor_places(file).items() if place[1]}
    assert len(places) > 100
    for i, (start, length) in enumerate(list(places.values())[::step]):
        with fault_log(21) as trial:
            position, bit = start + i * 7919 % length, i % 8
            flip(file, position, bit)
            trial.wrong = int(tiny.newest(out) == 2)
            assert tiny.newest(out) == 1
            flip(file, position, bit)
    assert tiny.newest(out) == 2


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit of a tensor": lambda path: flip(path / "tensors.safetensors", 100_000),
    "a bit of the header": lambda path: flip(path / "tensors.safetensors", 40),
    "cut": lambda path: os.truncate(path / "tensors.safetensors", 5000),
    "empty": lambda path: os.truncate(path / "state.json", 0),
    "no commit record": lambda path: (path / "COMMIT.json").unlink(),
    "empty commit record": lambda path: os.truncate(path / "COMMIT.json", 0),
    "a deep commit record": lambda path: (path / "COMMIT.json").write_text("[" * 100_000),
    "a forged commit record": lambda path: rewrite_commit(path, {"step": "2; rm"}),
    "a commit record of nothing": lambda path: rewrite_commit(path, {"files": {}}),
    "a folder in place of a file": lambda path: (
        (path / "state.json").unlink(), (path / "state.json").mkdir()),
    "a pipe in place of a file": lambda path: (
        (path / "COMMIT.json").unlink(), os.mkfifo(path / "COMMIT.json")),
    "a link to nowhere": lambda path: (
        (path / "state.json").unlink(), (path / "state.json").symlink_to("nowhere")),
    "renamed to a later step": lambda path: path.rename(path.with_name("step-00000009")),
    "an empty folder of a later step": lambda path: path.with_name("step-00000009").mkdir(),
    "a link to itself": lambda path: path.with_name("step-00000009").symlink_to("step-00000009"),
}  # fmt: skip


QUICK = {"a bit of a tensor", "a pipe in place of a file", "renamed to a later step"}


@pytest.mark.parametrize(
    "damage",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.chaos) for name in DAMAGE],
)
def test_the_newest_that_verifies_is_resumed(
    damage: str, tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    out = tiny.copy(tmp_path / "run")
    DAMAGE[damage](newest_folder(out))
    with fault_log(21) as trial:
        ended = tiny.server.run(*tiny.resume(out))
        assert ended.code == 0, ended.text
        assert "trying the previous one" in ended.text or damage == "a link to itself"
        trial.seconds = ended.seconds
        trial.lost = int(tiny.newest(out) != 4)
        tiny.assert_same_end(out)
        assert tiny.newest(out) == 4


def test_with_none_that_verifies_nothing_begins_anew(
    tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    out = tiny.copy(tmp_path / "run")
    for path in (out / "checkpoints").iterdir():
        flip(path / "tensors.safetensors", 100_000)
    for status in ("there", "gone"):
        if status == "gone":
            (out / "status.json").unlink()
        with fault_log(21) as trial:
            ended = tiny.server.run(*tiny.resume(out))
            assert ended.code == 74, ended.text
            assert "none of its 2 checkpoints is valid" in ended.line
            trial.seconds = ended.seconds
            assert len(list((out / "checkpoints").iterdir())) == 2


@pytest.mark.chaos
@pytest.mark.parametrize("text", ["", "[" * 100_000 + "\n", '{"step": "x", "run_id": 5}\n', "\0\n"])
def test_a_damaged_status_costs_nothing(
    text: str, tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    out = tiny.copy(tmp_path / "run")
    (out / "status.json").write_text(text)
    with fault_log(21) as trial:
        trial.seconds = tiny.finish(out).seconds


# --- another version, model, data, configuration --------------------------------------------


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (pairs("model.width=16"), 78, "model.width=16: the run began with 8"),
        pytest.param(pairs("data.resolution=28"), 78, "the run began with 32", marks=CHAOS),
        pytest.param(pairs("train.seed=3"), 78, "the run began with 0", marks=CHAOS),
        pytest.param(pairs("train.global_batch=32"), 78, "the run began with 64", marks=CHAOS),
        pytest.param(["-c", "cifar10_nin_rotnet"], 78, "is not what the run", marks=CHAOS),
        (pairs("optim.learning_rate=0.05"), 0, "changed since the run began: optim.learning_rate"),
    ],
)
def test_another_configuration(
    change: list[str], code: int, says: str, tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    out = tiny.copy(tmp_path / "run")
    with fault_log(20) as trial:
        ended = tiny.server.run(*tiny.resume(out, *change))
        assert ended.code == code, ended.text
        assert says in " ".join(ended.text.split()), ended.text
        trial.seconds = ended.seconds
        if code:
            assert "Traceback" not in ended.text
            tiny.finish(out)


@pytest.mark.chaos
def test_other_data_and_a_newer_version(tiny: TinyRun, tmp_path: Path, fault_log: FaultLog) -> None:
    out = tiny.copy(tmp_path / "run")
    with fault_log(20) as trial:
        held_out = tiny.data.with_name("digits-val.beton")
        ended = tiny.server.run(*tiny.resume(out, "--data", str(held_out)))
        assert ended.code == 78 and "not the data this run was started with" in ended.line, (
            ended.text
        )
        trial.seconds = ended.seconds
    with fault_log(20) as trial:
        rewrite_commit(newest_folder(out), {"format": 99})
        ended = tiny.server.run(*tiny.resume(out))
        assert ended.code == 78 and "checkpoint format 99" in ended.line, ended.text
        trial.seconds = ended.seconds
        rewrite_commit(newest_folder(out), {"format": 1})
        tiny.finish(out)


# --- old ones that cannot be removed --------------------------------------------------------


def test_what_cannot_be_removed_is_a_warning(
    tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    need_strace()
    out = tiny.copy(tmp_path / "run")
    deny = ["-f", "-e", "trace=unlinkat,rmdir", "-e", "inject=unlinkat:error=EACCES:when=4+"]
    with fault_log(23) as trial:
        ended = tiny.server.run(*tiny.resume(out), strace=deny)
        assert ended.code == 0, ended.text
        assert "cannot remove" in ended.text and "Traceback" not in ended.text
        trial.seconds = ended.seconds
        assert tiny.newest(out) == 4
        tiny.finish(out)  # and now they are gone


def test_torn_checkpoints_do_not_count_as_kept(
    tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    """With a torn one of a later step in the folder, two that verify stay."""
    out = tiny.copy(tmp_path / "run")
    later = shutil.copytree(newest_folder(out), newest_folder(out, 9))
    os.truncate(later / "tensors.safetensors", 5000)
    with fault_log(23) as trial:
        ended = tiny.server.run(*tiny.resume(out))
        assert ended.code == 0, ended.text
        trial.seconds = ended.seconds
        for step in (3, 4):
            assert (newest_folder(out, step) / "COMMIT.json").exists(), "a whole one was removed"
        assert tiny.newest(out) == 4
