"""What ``auto`` becomes, how a batch is cut, and what may change on resume."""

from __future__ import annotations

import pytest
import torch

from fastrot.config import load_config
from fastrot.distributed.world import World
from fastrot.errors import MismatchError, UsageError
from fastrot.system.machine import usable_cores
from fastrot.training.data import train_order, val_crop
from fastrot.training.resolve import BatchPlan, check_resumable, plan_batch, resolve

CPU = torch.device("cpu")


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
    order = train_order(config, 1000, world, plan, stored_bytes=10**8)
    assert (order.batch_size, order.accumulation) == (expected.per_pass, expected.accumulation)
    assert order.block == 83, "8 MiB of 100 kB each"


def test_batch_that_ranks_cannot_share_names_one_that_they_can() -> None:
    with pytest.raises(UsageError, match=r"multiple of the 3 ranks; set it to 126"):
        plan_batch(load_config("resnet50_8xb16-steplr-70e"), World(size=3))


def test_every_auto_becomes_a_value() -> None:
    config = resolve(load_config("resnet50_8xb16-steplr-70e"), World(), CPU)
    assert (config.train.device, config.train.precision) == ("cpu", "fp32")
    assert config.train.threads == usable_cores()
    assert config.data.workers is not None
    chosen = load_config("digits", ["train.precision=bf16", "train.threads=1", "data.workers=3"])
    resolved = resolve(chosen, World(), CPU)
    assert (resolved.train.precision, resolved.train.threads) == ("bf16", 1)
    assert resolved.data.workers == 3


def test_a_precision_that_a_cpu_has_no_kernels_for_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train.precision=fp16 .* fp32 or bf16"):
        resolve(load_config("digits", ["train.precision=fp16"]), World(), CPU)


def test_published_validation_crop() -> None:
    crop = val_crop(load_config("resnet50_8xb16-steplr-70e"))
    assert (crop.kind, crop.size, crop.resize, crop.flip) == ("center", 224, 256, 0.0)
    assert crop.boxes(0, 0, [0], [512], [256]).tolist() == [[144, 16, 224, 224]]


@pytest.mark.parametrize(
    "override",
    ["model.width=16", "train.seed=1", "train.global_batch=32", "pretext.views=one"],
)
def test_what_a_run_depends_on_cannot_change_on_resume(override: str) -> None:
    with pytest.raises(MismatchError, match="the run began with"):
        check_resumable(load_config("digits"), load_config("digits", [override]))


def test_other_changes_on_resume_are_listed() -> None:
    changed = check_resumable(load_config("digits"), load_config("digits", ["train.epochs=99"]))
    assert changed == ["train.epochs: 16.0 -> 99.0"]
    assert check_resumable(load_config("digits"), load_config("digits")) == []
