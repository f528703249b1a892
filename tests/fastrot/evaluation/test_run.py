"""``fastrot eval voc07-svm`` from a run and real photos to a table, and once more after that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FASTROT = [sys.executable, "-m", "fastrot"]
SHORT = ["model.width=8", "model.name=resnet18", "data.resolution=32", "train.global_batch=32"]
SHORT += ["train.max_steps=2", "train.threads=1", "sinks.tensorboard=false", "data.workers=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, test_data: Callable[[str], Path]) -> Path:
    """A run of two steps, and voc-mini's two splits as .beton files."""
    root = tmp_path_factory.mktemp("eval")
    voc = test_data("voc-mini") / "VOCdevkit"
    for split in ("trainval", "test"):
        prepare = [*FASTROT, "prepare", str(voc), f"{split}.beton", "--split", split]
        subprocess.run([*prepare, "--max-side", "64", "--follow-symlinks"], cwd=root, check=True)
    train = [*FASTROT, "train", "--data", "trainval.beton", "--out", "run"]
    for setting in SHORT:
        train += ["--set", setting]
    subprocess.run(train, cwd=root, check=True)
    return root


def evaluate(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*FASTROT, "eval", "voc07-svm", "run", "--train", "trainval.beton"]
    command += ["--test", "test.beton", "--set", "features.layers=[layer1,layer3]"]
    command += ["--set", "features.resolution=32", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_protocol_is_one_command_and_a_rerun_gives_the_same(folder: Path) -> None:
    done = evaluate(folder, "--set", "svm.folds=2")
    assert done.returncode == 0, done.stderr
    assert "67.70" in done.stdout and "not the protocol's own setting: svm.folds: 3 -> 2" in (
        done.stdout
    )
    path = folder / "run" / "eval" / "voc07-svm" / "result.json"
    first = json.loads(path.read_text())
    assert [score["name"] for score in first["scores"]] == ["layer1", "layer3"]
    for score in first["scores"]:
        assert 5 < score["value"] < 100 and len(score["detail"]["ap"]) == 20
        assert score["detail"]["largest_gap"] <= 1e-6
    (folder / "run" / "eval" / "voc07-svm" / "layer3.json").unlink()  # as if killed before it
    again = evaluate(folder, "--set", "svm.folds=2")
    assert again.returncode == 0, again.stderr
    assert json.loads(path.read_text())["scores"] == first["scores"]


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused_by_name(folder: Path) -> None:
    assert evaluate(folder, "--out", "other", "--set", "svm.folds=2").returncode == 0
    done = evaluate(folder, "--out", "other", "--set", "svm.folds=2", "--set", "svm.costs=[1]")
    assert done.returncode == 78
    assert "settings.svm.costs" in done.stderr


@pytest.mark.slow
def test_a_class_with_fewer_positives_than_folds_is_named(folder: Path) -> None:
    done = evaluate(folder, "--out", "folds", "--set", "svm.folds=90")
    assert done.returncode == 65
    assert "fewer than 90 folds" in done.stderr
