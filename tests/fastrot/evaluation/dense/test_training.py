"""The training of dense models: its rates, and that a killed one resumes to the same bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from fastrot.config import ModelConfig
from fastrot.distributed.world import World
from fastrot.errors import NonFiniteError, PreemptedError
from fastrot.evaluation.dense.settings import DenseConfig, learning_rate
from fastrot.evaluation.dense.training import Where, train_dense
from fastrot.evaluation.detection.evaluate import losses
from fastrot.evaluation.detection.models import faster_rcnn_c4
from fastrot.evaluation.detection.settings import DetectionConfig
from fastrot.models.backbones import ResNet, build_model

CPU = torch.device("cpu")
SMALL = DetectionConfig(sides=(64, 80), proposals=(60, 30), regions_per_image=16)
BRIEF = DenseConfig(steps=6, batch=2, milestones=(4,), warmup_steps=2, warmup_ratio=0.5, workers=1)


class Squares:
    """Six images of a bright square each, in one of two colours."""

    def __init__(self, stop_at: int | None = None) -> None:
        self._loaded, self._stop_at = 0, stop_at

    def __len__(self) -> int:
        return 6

    def load(self, epoch: int, sample: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self._loaded += 1
        if self._loaded == self._stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        image = torch.zeros(3, 60 + sample, 64, dtype=torch.uint8)
        left = 4 * sample
        image[sample % 2, 10:40, left : left + 30] = 250
        boxes = torch.tensor([[left, 10.0, left + 30, 40]])
        return image, {"boxes": boxes, "labels": torch.tensor([1 + sample % 2])}


def detector() -> torch.nn.Module:
    torch.manual_seed(3)
    network = build_model(ModelConfig(name="resnet18", width=8), seed=0).backbone
    assert isinstance(network, ResNet)
    return faster_rcnn_c4(network, 2, settings=SMALL, mean=(0.5,) * 3, std=(0.2,) * 3)


def trained(folder: Path, source: Squares) -> dict[str, torch.Tensor]:
    model = detector()
    where = Where(World(), CPU, folder)
    train_dense(model, losses, source, BRIEF, where, print, progress=False)
    return model.state_dict()


def test_stopped_and_resumed_it_gives_the_same_bits(tmp_path: Path) -> None:
    """torchvision samples anchors and regions by ``randperm``, and draws a side for each image."""
    whole = trained(tmp_path / "whole", Squares())
    with pytest.raises(PreemptedError, match="the same command continues"):
        trained(tmp_path / "parts", Squares(stop_at=5))
    saved = {path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()}
    assert "step-00000006" not in saved and len(saved) == 2
    parts = trained(tmp_path / "parts", Squares())
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    begun = detector().state_dict()
    name = "backbone.body.layer1.0.conv1.weight"
    assert not torch.equal(whole[name], begun[name]), "nothing was learnt"
    again = trained(tmp_path / "whole", Squares(stop_at=1))  # finished: it loads nothing
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_a_rate_that_is_too_high_is_named(tmp_path: Path) -> None:
    hot = BRIEF.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0})
    where = Where(World(), CPU, tmp_path / "hot")
    with pytest.raises(NonFiniteError, match=r"lower dense\.learning_rate"):
        train_dense(detector(), losses, Squares(), hot, where, print, progress=False)


def test_rates_are_those_of_the_published_schedules() -> None:
    """mmcv's, by hand: linear warm-up multiplies the rate, poly ends at the least rate."""
    step = DenseConfig(steps=100, learning_rate=0.02, milestones=(60, 90), warmup_steps=10)
    found = [learning_rate(at, step) for at in (0, 5, 10, 59, 60, 90)]
    assert found == pytest.approx([2e-5, 0.01001, 0.02, 0.02, 2e-3, 2e-4])
    poly = DenseConfig(
        steps=100, learning_rate=0.01, schedule="poly", least_rate=1e-4, warmup_steps=0
    )
    found = [learning_rate(at, poly) for at in (0, 50, 99)]
    assert found == pytest.approx([0.01, 0.0099 * 0.5**0.9 + 1e-4, 0.0099 * 0.01**0.9 + 1e-4])
