"""``fastrot eval voc07-svm`` from a run and real photos to a table, and once more after that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.program import run_python

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
        run_python([*prepare, "--max-side", "64", "--follow-symlinks"], cwd=root, check=True)
    train = [*FASTROT, "train", "--data", "trainval.beton", "--out", "run"]
    for setting in SHORT:
        train += ["--set", setting]
    run_python(train, cwd=root, check=True)
    return root


def evaluate(
    folder: Path, *options: str, launcher: list[str] = FASTROT
) -> subprocess.CompletedProcess[str]:
    command = [*launcher, "eval", "voc07-svm", "run", "--train", "trainval.beton"]
    command += ["--test", "test.beton", "--set", "features.layers=[layer1,layer3]"]
    command += ["--set", "features.resolution=32", *options]
    return run_python(command, cwd=folder)


@pytest.mark.slow
def test_a_protocol_is_one_command_and_a_rerun_gives_the_same(folder: Path) -> None:
    done = evaluate(folder, "--set", "svm.folds=2")
    assert done.returncode == 0, done.stderr
    assert "67.70" in done.stdout and "not the protocol's own setting: svm.folds: 3 -> 2" in (
        done.stdout
    )
    (path,) = (folder / "run" / "eval").glob("voc07-svm-*/result.json")
    assert str(path.relative_to(folder)) in done.stdout
    first = json.loads(path.read_text())
    assert [score["name"] for score in first["scores"]] == ["layer1", "layer3"]
    for score in first["scores"]:
        assert 5 < score["value"] < 100 and len(score["detail"]["ap"]) == 20
        assert score["detail"]["largest_gap"] <= 1e-6
    (part,) = path.parent.glob("parts-*/layer3.json")
    part.unlink()  # as if killed before it
    again = evaluate(folder, "--set", "svm.folds=2")
    assert again.returncode == 0, again.stderr
    assert json.loads(path.read_text())["scores"] == first["scores"]


@pytest.mark.slow
def test_two_ranks_extract_and_one_evaluates_to_the_same_numbers(folder: Path) -> None:
    few = ["--set", "svm.folds=2", "--set", "svm.costs=[0.5]", "--beside-random"]
    assert evaluate(folder, "--out", "one", *few).returncode == 0
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = evaluate(folder, "--out", "two", *few, launcher=[*ranks, "-m", "fastrot"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("layer3") == evaluate(folder, "--out", "one", *few).stdout.count(
        "layer3"
    )
    one, two = (
        json.loads(file.read_text())
        for out in ("one", "two")
        for file in (folder / out).glob("voc07-svm-*/result.json")
    )
    for part in ("scores", "random"):
        for a, b in zip(one[part], two[part], strict=True):
            assert a["name"] == b["name"] and a["value"] == pytest.approx(b["value"], abs=1e-4)
    shared = two["seconds"]["this start, features on 2 ranks"]
    assert 0 < shared < two["seconds"]["this start"]
    assert not any("ranks" in part for part in one["seconds"])


@pytest.mark.slow
def test_other_settings_and_other_channels_are_measured_beside_the_first(folder: Path) -> None:
    keys = []
    for more in ([], ["--set", "svm.costs=[1]"], ["--channel-order", "bgr"]):
        done = evaluate(folder, "--out", "other", "--set", "svm.folds=2", *more)
        assert done.returncode == 0, done.stderr
        index = json.loads((folder / "other" / "index.json").read_text())
        keys.append({entry["key"] for entry in index})
        assert keys[-1] > set().union(*keys[:-1]) and len(keys[-1]) == len(keys)
    changed = [any("svm.costs" in change for change in entry["changed"]) for entry in index]
    assert sorted(changed) == [False, False, True]


@pytest.mark.slow
def test_a_class_with_fewer_positives_than_folds_is_named(folder: Path) -> None:
    done = evaluate(folder, "--out", "folds", "--set", "svm.folds=90")
    assert done.returncode == 65
    assert "fewer than 90 folds" in done.stderr


PHOTO_SETTINGS = ["features.resolution=32", "features.resize=36", "linear.epochs=2"]
PHOTO_SETTINGS += ["linear.milestones=[1]", "knn.k=[1, 10]", "svm.folds=2", "lowshot.draws=2"]


@pytest.fixture(scope="module")
def photos(folder: Path, test_data: Callable[[str], Path]) -> Path:
    """The same folder with 10 classes of 12 and 4 imagenette photos."""
    for part, count in (("train", 12), ("val", 4)):
        for source in sorted((test_data("imagenette-128") / part).iterdir()):
            target = folder / "photos" / part / source.name
            target.mkdir(parents=True)
            for image in sorted(source.iterdir())[:count]:
                (target / image.name).symlink_to(image)
        command = [*FASTROT, "prepare", f"photos/{part}", f"{part}.beton", "--follow-symlinks"]
        run_python(command, cwd=folder, check=True)
    return folder


def of_photos(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [*FASTROT, "eval"]
    for setting in PHOTO_SETTINGS:  # of two settings the later one holds
        command += ["--set", setting]
    command += words
    done = run_python(command, cwd=folder, timeout=600)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.slow
def test_the_suite_runs_what_the_data_allows(photos: Path) -> None:
    words = ["suite", "run", "--voc07", "trainval.beton", "test.beton", "--imagenet", "train.beton"]
    words += ["val.beton", "--mode", "cached-2,augmented", "--out", "suite"]
    done = of_photos(photos, *words)
    suite = json.loads((photos / "suite" / "suite.json").read_text())
    assert [result["protocol"] for result in suite["results"]] == [
        "voc07-svm",
        "voc07-lowshot",
        "in1k-linear-mhead",
        "in1k-linear-mhead",
        "in1k-linear-avgpool",
        "in1k-linear-avgpool",
        "in1k-knn",
    ]
    modes = [result["label"] for result in suite["results"]]
    assert modes[2:6] == ["cached-2", "augmented", "cached-2", "augmented"]
    for result in suite["results"]:
        assert len(result["random"]) == len(result["scores"]) > 0
        assert all(0 <= score["value"] <= 100 for score in result["scores"])
    assert set(suite["gaps"]) == {"in1k-linear-mhead", "in1k-linear-avgpool"}
    assert len(suite["gaps"]["in1k-linear-mhead"]) == 10
    assert "scores are not comparable with published ones" in done.stdout
    for published in ("67.70", "20.60", "54.20", "48.12", "11.00"):
        assert published in done.stdout, published
        assert published in (photos / "suite" / "suite.md").read_text()
    # The same command again does nothing but read.
    again = of_photos(photos, *words)
    rerun = json.loads((photos / "suite" / "suite.json").read_text())
    assert rerun["rows"] == suite["rows"]
    assert "epoch" not in again.stderr


@pytest.mark.slow
def test_data_that_does_not_fit_is_left_out_and_named(photos: Path) -> None:
    words = ["suite", "run", "--voc07", "trainval.beton", "test.beton", "--not-beside-random"]
    command = [*words, "--out", "left", "--set", "features.layers=[layer3]"]
    done = of_photos(photos, *command, "--set", "svm.folds=100", code=0)
    suite = json.loads((photos / "left" / "suite.json").read_text())
    assert "fewer than 100 folds" in suite["left_out"]["voc07-svm (test transform)"]
    assert "not run: voc07-svm" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["linear", "run"], "add --train DATA --test DATA"),
        (["linear", "run", "--train", "train.beton"], "go together"),
        (["suite", "run"], "eval suite needs data"),
        (["knn", "run", "--imagenet", "train.beton", "val.beton"], "is for eval suite"),
        (
            ["knn", "run", "--train", "train.beton", "--test", "val.beton", "--mode", "augmented"],
            "omit --mode",
        ),
        (
            ["knn", "run", "--train", "train.beton", "--test", "val.beton", "--mode", "fast"],
            "choose augmented, or cached-K",
        ),
        (
            [
                *"linear run --train train.beton --test val.beton --mode".split(),
                "cached-1,augmented",
            ],
            "only eval suite takes several",
        ),
        (
            ["knn", "run", "--train", "val.beton", "--test", "val.beton", "--set", "knn.k=[99]"],
            "knn.k=99 is more than the 40 images",
        ),
        (["nonsense", "run", "--train", "train.beton", "--test", "val.beton"], "nonsense"),
        (
            [
                *"linear run --train train.beton --test val.beton --set".split(),
                "linear.solver=torch",
            ],
            "linear.solver=torch solves the exact optimum, which is not requested",
        ),
        (
            [
                *"voc07-svm run --train train.beton --test val.beton --set".split(),
                "svm.solver=liblinear",
            ],
            "svm.solver",
        ),
    ],
)
def test_what_does_not_go_together_is_named(photos: Path, words: list[str], message: str) -> None:
    done = of_photos(photos, *words, code=64)
    errors = [line for line in done.stderr.splitlines() if line.startswith("fastrot:")]
    assert len(errors) == 1 and message in errors[0], done.stderr
    assert len(done.stderr.splitlines()) <= 2, "one may name settings that are not read"
