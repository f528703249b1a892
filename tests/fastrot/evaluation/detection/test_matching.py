"""Which anchors are for which objects: a table of IoUs by hand, and in the assembled model."""

from __future__ import annotations

import torch
from torchvision.models.detection._utils import Matcher

from fastrot.config import ModelConfig
from fastrot.evaluation.detection.matching import AnchorMatcher
from fastrot.evaluation.detection.models import mask_rcnn_fpn
from fastrot.evaluation.detection.settings import DetectionConfig
from fastrot.models.backbones import ResNet, build_model


def test_the_best_anchor_of_an_object_needs_an_iou_of_its_own() -> None:
    iou = torch.tensor(
        [
            [0.75, 0.10, 0.00, 0.00, 0.00, 0.00],
            [0.00, 0.45, 0.45, 0.20, 0.00, 0.00],  # both of its best anchors
            [0.00, 0.00, 0.00, 0.29, 0.00, 0.10],  # its best anchor is worse than 0.3
            [0.00, 0.50, 0.00, 0.00, 0.71, 0.00],
            [0.00, 0.00, 0.00, 0.00, 0.60, 0.35],  # its best anchor overlaps object 3 more
        ]
    )
    assert AnchorMatcher(0.7, 0.3, least=0.3)(iou).tolist() == [0, 1, 1, -1, 4, -2]
    assert AnchorMatcher(0.7, 0.3, least=0.29)(iou).tolist() == [0, 1, 1, 2, 4, -2]
    assert Matcher(0.7, 0.3, True)(iou).tolist() == [0, 3, 1, 2, 3, -2]


def test_the_proposals_of_a_detector_need_it() -> None:
    """Two anchors of 10 x 10 pixels, alone with objects of IoU 0.29 and 0.31."""
    backbone = build_model(ModelConfig(name="resnet18", width=16), seed=0).backbone
    assert isinstance(backbone, ResNet)
    model = mask_rcnn_fpn(backbone, 3, settings=DetectionConfig(), mean=(0.5,) * 3, std=(1.0,) * 3)
    labels, _ = model.rpn.assign_targets_to_anchors(
        [torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])],
        [{"boxes": torch.tensor([[0.0, 0, 10, 2.9], [20, 20, 30, 23.1]])}],
    )
    assert labels[0].tolist() == [0, 1]
