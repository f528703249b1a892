"""An evaluation that trains a model, on a real Slurm: stopped, requeued, and done."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import save_file

from fastrot.config import ModelConfig
from fastrot.distributed.slurm_jobs import job_states
from fastrot.models.backbones import build_model
from fastrot.system.jsonl import read_json_lines
from tests.fastrot.data.annotations.label_files import random_labels, write_cityscapes
from tests.program import pairs, poll

# Slurm lets a job that was requeued wait two minutes.
pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("slurm")]

PATIENCE = 900.0
SETTINGS = pairs(
    *("model.name=resnet18", "model.width=8", "dense.partial=true", "dense.batch=2"),
    *("dense.workers=1", "segmentation.scale=[96,48]", "segmentation.crop=48"),
    *("segmentation.test=slide", "segmentation.stride=24"),
)


def test_a_refused_evaluation_is_not_started(tmp_path: Path) -> None:
    command = command_of(tmp_path, "--slurm", "partition=none-such")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 64 and "Slurm refuses the job" in done.stderr, done.stderr


@pytest.mark.fault(4)
def test_an_evaluation_that_is_preempted_continues(tmp_path: Path) -> None:
    write(tmp_path)
    options = ("tasks_per_node=2", "cpus_per_task=1", "time_min=20")
    words = [word for option in options for word in ("--slurm", option)]
    said = tmp_path / "said"
    with said.open("w") as file:
        command = command_of(tmp_path, *words, "--set", "dense.steps=150", "--wait")
        process = subprocess.Popen(command, stdout=file, stderr=file)
    found = partial(re.search, r"submitted job (\d+); the results: ")
    poll(lambda: found(said.read_text()) or process.poll() is not None, "it is submitted", PATIENCE)
    match = found(said.read_text())
    assert match, said.read_text()
    job = match[1]
    logs = [said, *(tmp_path / "out.slurm" / f"{job}_0_log.{end}" for end in ("out", "err"))]

    def text() -> str:
        return "\n".join(log.read_text() for log in logs if log.exists())

    def trains() -> bool:
        assert job_states([job])[job].lives, text()
        return any(
            record["kind"] == "train"
            for file in tmp_path.glob("out/*/training/metrics.jsonl")
            for record in read_json_lines(file)
        )

    poll(trains, "it trains", PATIENCE)
    subprocess.run(["scancel", "--signal=USR2", job], check=True)  # as before the time limit
    assert process.wait(PATIENCE) == 0, text()
    starts = list(read_json_lines(tmp_path / "out.slurm" / "starts.jsonl"))
    ends = [record["exit_code"] for record in starts if record["kind"] == "end"]
    assert ends == [75, 0], text()
    saved = [record["step"] for record in starts if record["kind"] == "start"]
    assert saved[0] == 0 < saved[1]
    (file,) = tmp_path.glob("out/*/result.json")
    assert 0 <= json.loads(file.read_text())["scores"][0]["value"] <= 100
    assert len(list(tmp_path.glob("out/*/training/checkpoints/step-00000150"))) == 1


def write(root: Path) -> None:
    """Weights, and two images each to train and to test on."""
    backbone = build_model(ModelConfig(name="resnet18", width=8), seed=0).backbone
    save_file(backbone.state_dict(), root / "w.safetensors")
    for split in ("train", "val"):
        scenes = {f"ulm/ulm_{split}_{i}": random_labels(i, [7, 8, 26, 0]) for i in range(2)}
        write_cityscapes(root / "data", split, scenes)


def command_of(root: Path, *words: str) -> list[str]:
    command = [sys.executable, "-m", "fastrot", "eval", "cityscapes-seg"]
    command += [str(root / "w.safetensors"), "--train", str(root / "data")]
    command += ["--test", str(root / "data"), "--out", str(root / "out"), *SETTINGS]
    return [*command, "--cluster", "slurm", "--gpus", "0", *words]
