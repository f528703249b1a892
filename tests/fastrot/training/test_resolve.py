"""What ``auto`` becomes, and how a batch is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastrot.config import load_config
from fastrot.distributed.world import World
from fastrot.errors import UsageError
from fastrot.system.machine import usable_cores
from fastrot.training.data import RunData, open_data, train_order, val_crop
from fastrot.training.request import TrainRequest
from fastrot.training.resolve import (
    SHARED_CORES,
    BatchPlan,
    Platform,
    choose_platform,
    plan_batch,
    resolve,
)

CPU = torch.device("cpu")
DIGITS = ("data.train=embedded:digits", "train.device=cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    out = tmp_path_factory.mktemp("run")
    return open_data(load_config(None, DIGITS), out, World(), CPU, print)


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "expected"),
    [
        (128, None, 1, BatchPlan(128, 1)),
        (128, None, 8, BatchPlan(16, 1)),
        (128, 16, 1, BatchPlan(16, 8)),
        (128, 16, 8, BatchPlan(16, 1)),
        (128, 100, 1, BatchPlan(64, 2)),
        (6, 4, 1, BatchPlan(3, 2)),
        (7, 3, 1, BatchPlan(1, 7)),
    ],
)
def test_global_batch_is_cut_equally(
    batch: int, micro: int | None, ranks: int, expected: BatchPlan
) -> None:
    config = load_config("digits", [f"train.global_batch={batch}"])
    if micro is not None:
        config = load_config(
            "digits", [f"train.global_batch={batch}", f"train.micro_batch={micro}"]
        )
    world = World(size=ranks)
    plan = plan_batch(config, world)
    assert plan == expected
    order = train_order(config, 1000, world, accumulation=plan.accumulation, stored_bytes=10**8)
    assert (order.batch_size, order.accumulation) == (expected.per_pass, expected.accumulation)
    assert order.block == 83, "8 MiB of 100 kB each"


def test_batch_that_ranks_cannot_share_names_one_that_they_can() -> None:
    with pytest.raises(UsageError, match=r"multiple of the 3 ranks; set it to 126"):
        plan_batch(load_config("resnet50_8xb16-steplr-70e"), World(size=3))


def test_every_auto_becomes_a_value(digits: RunData) -> None:
    small = [*DIGITS, "data.resolution=32"]  # at 224 px it takes 45 GB
    asked = load_config("resnet50_8xb16-steplr-70e", small)
    said: list[str] = []
    run = resolve(asked, choose_platform(asked), digits, said.append)
    config = run.config
    assert (config.train.device, config.train.precision) == ("cpu", "fp32")
    assert config.train.step == run.backend.step == "eager"
    assert config.train.threads == usable_cores()
    assert config.data.workers is not None
    still_open = {
        f"{section}.{key}"
        for section, values in config.model_dump().items()
        for key, value in values.items()
        if value == "auto"
    }
    assert still_open == {"train.batchnorm", "train.val_knn"}, "see ResolvedRun.config"
    assert f"loader: {config.data.loader} (" in said[0] and "step: eager" in said[1]
    assert (run.batch, run.order.batch_size) == (BatchPlan(128, 1), 128)


def test_what_is_named_stays(digits: RunData) -> None:
    chosen = load_config("digits", ["train.precision=bf16", "train.threads=1", "data.workers=3",
                                    "data.loader=reference", "train.device=cpu"])  # fmt: skip
    config = resolve(chosen, choose_platform(chosen), digits, print).config
    assert (config.train.precision, config.train.threads) == ("bf16", 1)
    assert (config.data.workers, config.data.loader) == (3, "reference")


def test_other_ranks_share_the_cores_anew_but_for_what_is_named(digits: RunData) -> None:
    """Threads and workers in a run's own configuration were chosen for the ranks it had."""
    saved = load_config("digits", ["train.threads=7", "data.workers=5", "train.device=cpu"])
    request = TrainRequest(saved, None, ("data.workers=5",), Path("run"), True)
    assert request.unnamed(*SHARED_CORES) == ("train.threads",)
    alone = choose_platform(saved)
    two = Platform(World(size=2, local_size=2), CPU, alone.precision, alone.backend)
    config = resolve(saved, two, digits, print, anew=request.unnamed(*SHARED_CORES)).config
    assert config.train.threads == max(1, usable_cores() // 2)
    assert config.data.workers == 5
    config = resolve(saved, alone, digits, print).config
    assert (config.train.threads, config.data.workers) == (7, 5)


def test_a_precision_that_a_cpu_has_no_kernels_for_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train.precision=fp16 .* fp32 or bf16"):
        choose_platform(load_config("digits", ["train.precision=fp16", "train.device=cpu"]))


def test_published_validation_crop() -> None:
    crop = val_crop(load_config("resnet50_8xb16-steplr-70e"))
    assert (crop.kind, crop.size, crop.resize, crop.flip) == ("center", 224, 256, 0.0)
    assert crop.boxes(0, 0, [0], [512], [256]).tolist() == [[144, 16, 224, 224]]
