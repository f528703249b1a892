"""bench train: real trainers, ended when they have run long enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from fastrot.benchmarks.common.trainers import TrainerError
from fastrot.benchmarks.train import TrainBenchRequest, run_train
from fastrot.data.digits import write_digits
from fastrot.errors import UsageError

SMALL = ("model.width=8", "train.threads=1", "data.workers=0")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))[0]


@pytest.mark.slow
def test_loaders_are_told_as_shares_of_the_rate_without_loading(digits: Path) -> None:
    report = run_train(TrainBenchRequest(
        digits, recipe="digits", overrides=[*SMALL, "data.val=null"],
        loaders=("native",), rounds=1, seconds=1.0, repeat=1, progress=False,
    ))  # fmt: skip
    document = json.loads(json.dumps(report.to_json()))
    points = {point["point"]: point for point in document["points"]}
    assert list(points) == ["synthetic", "native"]
    for point in points.values():
        assert point["images_per_second"]["median"] > 10
        assert point["views_per_second"]["median"] == pytest.approx(
            4 * point["images_per_second"]["median"], rel=1e-3
        )
        assert 0 <= point["data_wait"]["median"] < 1
    assert set(document["ratios"]) == {"native"}
    assert document["step"].startswith("step: eager (batch norm: torch): no GPU")
    assert document["data"]["samples"] == 1497 and not document["left_out"]
    console = Console(width=100, record=True)
    report.show(console)
    assert "of the rate without loading" in " ".join(console.export_text().split())


@pytest.mark.slow
def test_what_ends_a_trainer_is_passed_on(digits: Path) -> None:
    with pytest.raises(TrainerError, match="batch=5000 is larger than the dataset") as raised:
        run_train(TrainBenchRequest(
            digits, recipe="digits", overrides=[*SMALL, "train.global_batch=5000"], loaders=(),
            rounds=1, seconds=1.0, repeat=1, progress=False,
        ))  # fmt: skip
    assert raised.value.exit_code == 64


def test_bad_arguments_are_refused(digits: Path) -> None:
    with pytest.raises(UsageError, match="loaders fast are unknown; use native, reference, ffcv"):
        run_train(TrainBenchRequest(digits, loaders=["fast"], progress=False))
    with pytest.raises(UsageError, match=r"--seconds=0 must be more than 0"):
        run_train(TrainBenchRequest(digits, seconds=0, progress=False))
    with pytest.raises(UsageError, match=r"nearest known key is 'train.epochs'"):
        run_train(TrainBenchRequest(digits, overrides=["train.epoch=3"], progress=False))
