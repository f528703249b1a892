"""``fastrot train --ffcv`` with every engine: the same samples, the same crops, the same losses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.program import run_python

STEPS = 20
SETTINGS = (
    "model.name=resnet18",
    "model.width=8",
    "data.resolution=64",
    "data.workers=1",
    "optim.learning_rate=0",  # with learning on, tiny pixel differences grow to any size
    "train.global_batch=32",
    f"train.max_steps={STEPS}",
    "train.log_seconds=1e-9",  # a line of metrics.jsonl for every step
    "train.sample_log=ids",
    "train.threads=1",
    "sinks.tensorboard=false",
)


def fastrot(*arguments: str) -> None:
    done = run_python([sys.executable, "-m", "fastrot", *arguments])
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory, test_data: Callable[[str], Path]) -> Path:
    path = tmp_path_factory.mktemp("beton") / "imagenette.beton"
    fastrot("prepare", str(test_data("imagenette-128")), str(path), "--split", "val", "--copy")
    return path


def train(beton: Path, loader: str, out: Path) -> tuple[list[float], bytes]:
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    fastrot("train", "--ffcv", str(beton), "--loader", loader, "--out", str(out), *words)
    records = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return losses, (out / "samples.jsonl").read_bytes()


@pytest.fixture(scope="module")
def reference(beton: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], bytes]:
    return train(beton, "reference", tmp_path_factory.mktemp("reference") / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loader", "package"), [("native", "fastrot"), ("ffcv", "ffcv"), ("dali", "nvidia.dali")]
)
def test_losses_at_learning_rate_zero_are_those_of_the_reference(
    beton: Path, reference: tuple[list[float], bytes], tmp_path: Path, loader: str, package: str
) -> None:
    pytest.importorskip(package)
    losses, samples = train(beton, loader, tmp_path / "run")
    assert samples == reference[1]
    differences = [abs(a - b) for a, b in zip(losses, reference[0], strict=True)]
    print(f"{loader}: losses differ by {max(differences):.5f} at most")
    assert max(differences) < 0.02
    assert len({round(loss, 6) for loss in losses}) == STEPS  # a constant would agree, too
