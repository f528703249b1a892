"""A rank that trains and tests a small dense model, as its environment says.

``rank_dense.py KIND FOLDER STOP``: KIND is ``c4``, ``fpn`` or ``fcn``; a word after a hyphen makes
what torchvision draws matter. Writes what was found in the test images to FOLDER.json, on the main
rank. The last rank gets a SIGTERM when it loads its fifth image, after two steps, if STOP is
``term``, and a SIGKILL if it is ``kill``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fastrot.config import ModelConfig
from fastrot.distributed.world import joined, read_world
from fastrot.errors import FastrotError
from fastrot.evaluation.dense import training
from fastrot.evaluation.dense.settings import DenseConfig
from fastrot.evaluation.dense.training import Where, train_dense
from fastrot.evaluation.detection import evaluate as detection
from fastrot.evaluation.detection import models
from fastrot.evaluation.detection.predictions import Detections
from fastrot.evaluation.detection.settings import DetectionConfig
from fastrot.evaluation.segmentation import evaluate as segmentation
from fastrot.evaluation.segmentation.fcn import Fcn
from fastrot.evaluation.segmentation.predict import SegmentationLosses
from fastrot.evaluation.segmentation.settings import SegmentationConfig
from fastrot.models.backbones import ResNet, build_model

SIDE, STEPS = 64, 4
MEAN, STD = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
BRIEF = DenseConfig(
    steps=STEPS, batch=4, milestones=(), warmup_steps=0, learning_rate=0.01, workers=1,
    precision="fp64",
)  # fmt: skip
# Ten proposals and one object an image, and boxes far smaller than anchors, so that all anchors and
# regions count and every image has as many.
COUNTED = DetectionConfig(
    sides=(SIDE,), proposals=(10, 10), anchors_per_image=10_000, proposals_before_nms=(100, 100),
    least_score=0.0, detections=5,
)  # fmt: skip
DRAWN = DetectionConfig(
    sides=(48, SIDE), proposals=(40, 10), anchors_per_image=16, regions_per_image=8,
    least_score=0.0, detections=5,
)  # fmt: skip


class Noise:
    """Eight images of noise to train on, with one small object each, and five to test on."""

    num_classes = 2

    def __init__(self, kind: str, stop: str = "") -> None:
        self._kind, self._stop, self._loaded = kind, stop, 0

    def __len__(self) -> int:
        return 8

    def load(self, epoch: int, sample: int) -> tuple[torch.Tensor, Any]:
        self._loaded += 1
        if self._stop and self._loaded == 5:
            os.kill(os.getpid(), getattr(signal, f"SIG{self._stop.upper()}"))
        made = torch.Generator().manual_seed(100 * epoch + sample)
        image = torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8, generator=made)
        if self._kind == "fcn":
            labels = torch.randint(3, (SIDE, SIDE), dtype=torch.uint8, generator=made)
            return image, torch.where(labels == 2, 255, labels)  # a third is ignored
        left, top = torch.randint(20, 36, (2,), generator=made).tolist()
        mask = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
        mask[:, top : top + 8, left : left + 8] = 1
        target = {"boxes": torch.tensor([[left, top, left + 8.0, top + 8.0]]),
                  "labels": torch.tensor([1 + sample % 2]), "masks": mask}  # fmt: skip
        return image, target


class Test(Noise):
    """The images to test on."""

    def __len__(self) -> int:
        return 5

    def decode(self, sample: int) -> np.ndarray:
        return self.load(9, sample)[0].permute(1, 2, 0).numpy()

    def target(self, sample: int) -> SimpleNamespace:
        return SimpleNamespace(labels=self.load(9, sample)[1].numpy())

    def name(self, sample: int) -> str:
        return str(sample)


def plain(found: Detections) -> list[Any]:
    masks = [str(mask["counts"]) for mask in found.masks or ()]
    return [found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), masks]


def main() -> None:
    """Train and test, and exit with the code of the failure."""
    kind, folder, stop = sys.argv[1].partition("-")[0], Path(sys.argv[2]), sys.argv[3]
    settings = DRAWN if "-" in sys.argv[1] else COUNTED
    torch.set_num_threads(1)
    training._LOG_SECONDS = 0.0  # type: ignore[misc]  # the log has every step
    if settings is DRAWN:  # what is killed has saved every step
        training._CHECKPOINT_SECONDS = 0.0  # type: ignore[misc]
    models._FPN_CHANNELS = 16  # type: ignore[misc]
    world, device = read_world(), torch.device("cpu")
    torch.manual_seed(3)
    network = build_model(ModelConfig(name="resnet18", width=8), seed=0).backbone
    assert isinstance(network, ResNet)
    source: Any = Noise(kind, stop if world.rank == world.size - 1 else "")
    losses: Any = detection.losses
    model: Any
    if kind == "fcn":
        model = Fcn(network, 2, align_corners=False)
        model.decode_head.dropout.p = model.auxiliary_head.dropout.p = (
            0.0  # each rank draws its own
        )
        losses = SegmentationLosses(MEAN, STD, auxiliary_weight=0.4)
    elif kind == "c4":
        model = models.faster_rcnn_c4(network, 2, settings=settings, mean=MEAN, std=STD)
    else:
        model = models.mask_rcnn_fpn(network, 2, settings=settings, mean=MEAN, std=STD)
    test: Any = Test(kind)
    try:
        with joined(world, device):
            where = Where(world, device, folder)
            train_dense(model, losses, source, BRIEF, where, print, progress=False)
            if kind == "fcn":
                how = SegmentationConfig(scale=(SIDE, SIDE), crop=SIDE)
                matrix = segmentation.label(model, test, how, MEAN, STD, world, device, print)
                found: Any = matrix.counts.tolist()
            else:
                every = detection.detect(model, test, world, device, print)
                found = every and [plain(each) for each in every]
    except FastrotError as error:
        print(error)
        sys.exit(error.exit_code)
    if world.is_main:
        folder.with_name(f"{folder.name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
