"""Training from the command line: kill it anywhere, resume, and get the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.program import Process, pairs, run_python, start_python

STEPS = 36


# One thread: at this size a second one costs more than it brings, beside other work far more.
SMALL = pairs(
    "model.width=8",
    "train.threads=1",
    "train.log_seconds=0.2",
    "train.deterministic=true",  # where there is a GPU, these tests train on it
    "sinks.tensorboard=false",
)


def command(out: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "fastrot", "train", "--out", str(out), *SMALL, *arguments]


def train(out: Path, *arguments: str, code: int = 0) -> str:
    done = run_python(command(out, *arguments))
    assert done.returncode == code, done.stderr
    return done.stderr


def final_tensors(out: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:08d}" / "tensors.safetensors")


def settings(*extra: str) -> list[str]:
    usual = (f"train.max_steps={STEPS}", "train.checkpoint_steps=4", "train.sample_log=ids")
    return pairs(*usual, *extra)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an interpreter of its own, whose ``hash`` has another seed than forked runs have."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    subprocess.run(command(out, *settings()), check=True)
    return out


def assert_same_end(out: Path, reference: Path) -> None:
    ours, theirs = final_tensors(out), final_tensors(reference)
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("optimizer.") for name in ours)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert (out / "samples.jsonl").read_bytes() == (reference / "samples.jsonl").read_bytes()
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").open()]
    assert steps == sorted(steps)


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.chaos)])
def test_killed_anywhere_and_resumed_gives_the_same_bits(
    uninterrupted: Path, tmp_path: Path, times: int
) -> None:
    out = tmp_path / "run"
    chance = random.Random(os.environ.get("FASTROT_KILL_SEED", "20261122"))
    kills = 0
    while kills < times:
        process = start_python(command(out, "--resume", *settings()))
        wait_for_training(process, out)
        time.sleep(chance.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
    train(out, "--resume", *settings())
    assert kills, "the run ended before it could be killed"
    assert_same_end(out, uninterrupted)


def wait_for_training(process: Process, out: Path) -> None:
    """Until this process has taken the lock and logged a step (or has ended)."""
    before = (out / "samples.jsonl").stat().st_size if (out / "samples.jsonl").exists() else 0
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        path = out / "samples.jsonl"
        if path.exists() and path.stat().st_size != before:
            return
        time.sleep(0.05)


@pytest.mark.slow
def test_signal_writes_a_checkpoint_and_leaves_with_75(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_python(command(out, *settings("train.checkpoint_steps=1000")))
    wait_for_training(process, out)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=600)
    assert process.returncode == 75, text
    assert "add --resume" in text
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "preempted" and status["exit_code"] == 75
    assert (out / "checkpoints" / f"step-{status['step']:08d}" / "COMMIT.json").is_file()
    train(out, "--resume", *settings("train.checkpoint_steps=1000"))
    assert_same_end(out, uninterrupted)
    assert "training is complete" in (out / "status.json").read_text()


@pytest.mark.slow
def test_a_stop_before_a_validation_loses_no_validation(tmp_path: Path) -> None:
    """One step an epoch: the signal always finds a validation that is due."""
    out = tmp_path / "run"
    slow = ("model.width=8", "train.global_batch=1400", "train.max_steps=1", "train.epochs=2")
    process = start_python(command(out, *pairs(*slow)))
    deadline = time.monotonic() + 600
    while not (out / "checkpoints" / "step-00000000").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=600)
    assert process.returncode == 75, text
    assert "held-out rotation accuracy" in train(out, "--resume", *pairs(*slow))
    records = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    assert [r["step"] for r in records if r["kind"] == "validation"] == [1]


def test_signal_before_the_first_step_is_told_in_the_status(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_python(command(out))
    deadline = time.monotonic() + 600
    while not (out / "status.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=600)
    assert process.returncode == 75, text
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("preempted", 75)


def test_torchvision_loads_the_backbone(uninterrupted: Path, tmp_path: Path) -> None:
    import torchvision

    out = tmp_path / "run"
    big = ("model.name=resnet50", "model.width=64", "train.global_batch=2", "train.threads=2")
    train(out, *pairs(*big, "train.max_steps=1", "data.val=null"))
    weights = load_file(out / "checkpoints" / "step-00000001" / "backbone.safetensors")
    result = torchvision.models.resnet50(weights=None).load_state_dict(weights, strict=False)
    assert result.missing_keys == ["fc.weight", "fc.bias"] and not result.unexpected_keys


@pytest.mark.slow
def test_a_fused_run_keeps_its_step_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fused = ("train.step=fused", "train.checkpoint_steps=4")
    train(whole, *pairs(*fused, "train.max_steps=8"))
    train(parts, *pairs(*fused, "train.max_steps=4"))
    assert "step: fused (batch norm: fused)" in train(
        parts, "--resume", *pairs("train.max_steps=8")
    )
    ours, theirs = final_tensors(parts, 8), final_tensors(whole, 8)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert int(ours["model.backbone.layer1.0.bn1.num_batches_tracked"]) == 8
    eager = train(parts, "--resume", *pairs("train.max_steps=9", "train.step=eager"))
    assert "changed since the run began: train.step: 'fused' -> 'eager'" in eager
    assert "step: eager (batch norm: torch)" in eager


def test_accumulation_says_what_it_changes(tmp_path: Path) -> None:
    text = train(tmp_path / "run", *settings("train.max_steps=2", "train.micro_batch=16"))
    assert "accumulating 4 micro-batches per step" in text and "bn_batch=64" in text


def test_non_finite_step_stops_with_70_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    out = tmp_path / "run"
    hot = settings("optim.learning_rate=1e30", "optim.warmup_epochs=0", "train.checkpoint_steps=1")
    text = train(out, *hot, code=70)
    assert "NaN or infinite in step" in text and "lower optim.learning_rate" in text
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 70)
    assert all(value.isfinite().all() for value in final_tensors(out, status["step"]).values())


def test_existing_run_needs_resume_and_resume_needs_the_same_model(
    uninterrupted: Path,
) -> None:
    text = train(uninterrupted, *settings(), code=64)
    assert "add --resume" in text
    text = train(uninterrupted, "--resume", "--set", "train.seed=5", code=78)
    assert "the run began with 0" in text
    text = train(uninterrupted, "--resume", "-c", "cifar10_nin_rotnet", code=78)
    assert "cannot resume with" in text
    text = train(uninterrupted, "--resume", *settings())
    assert_same_end(uninterrupted, uninterrupted)


def test_two_processes_cannot_train_one_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    endless = settings("train.max_steps=1000000", "train.epochs=1000000")
    process = start_python(command(out, *endless))
    try:
        wait_for_training(process, out)
        assert process.poll() is None
        assert "held by" in train(out, "--resume", *settings(), code=78)
    finally:
        process.kill()
        process.wait()
