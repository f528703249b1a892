"""The published detectors: their tensors, and torchvision's own losses where they agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from fastrot.config import ModelConfig
from fastrot.evaluation.dense.stages import dilate, stride_of
from fastrot.evaluation.detection import losses
from fastrot.evaluation.detection.models import ResizedImages, faster_rcnn_c4, mask_rcnn_fpn
from fastrot.evaluation.detection.settings import DetectionConfig
from fastrot.models.backbones import ResNet, build_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# From the published configurations: Faster R-CNN R50-C4 of VOC (20 classes), Mask R-CNN R50-FPN of
# COCO (80 classes).
C4 = {
    "backbone.body.conv1.weight": (64, 3, 7, 7),
    "backbone.body.layer3.5.conv3.weight": (1024, 256, 1, 1),
    "rpn.head.conv.0.0.weight": (1024, 1024, 3, 3),
    "rpn.head.cls_logits.weight": (15, 1024, 1, 1),
    "rpn.head.bbox_pred.weight": (60, 1024, 1, 1),
    "roi_heads.box_head.layer4.0.conv1.weight": (512, 1024, 1, 1),
    "roi_heads.box_head.layer4.2.conv3.weight": (2048, 512, 1, 1),
    "roi_heads.box_head.norm.weight": (2048,),
    "roi_heads.box_head.norm.running_mean": (2048,),
    "roi_heads.box_predictor.cls_score.weight": (21, 2048),
    "roi_heads.box_predictor.bbox_pred.weight": (84, 2048),
}
FPN = {
    "backbone.body.layer4.2.conv3.weight": (2048, 512, 1, 1),
    **{f"backbone.fpn.inner_blocks.{i}.0.weight": (256, 256 << i, 1, 1) for i in range(4)},
    **{f"backbone.fpn.inner_blocks.{i}.1.running_var": (256,) for i in range(4)},
    **{f"backbone.fpn.layer_blocks.{i}.0.weight": (256, 256, 3, 3) for i in range(4)},
    **{f"backbone.fpn.layer_blocks.{i}.1.weight": (256,) for i in range(4)},
    "rpn.head.conv.0.0.weight": (256, 256, 3, 3),
    "rpn.head.cls_logits.weight": (3, 256, 1, 1),
    **{f"roi_heads.box_head.{i}.0.weight": (256, 256, 3, 3) for i in range(4)},
    **{f"roi_heads.box_head.{i}.1.weight": (256,) for i in range(4)},
    "roi_heads.box_head.5.weight": (1024, 256 * 7 * 7),
    "roi_heads.box_predictor.cls_score.weight": (81, 1024),
    "roi_heads.box_predictor.bbox_pred.weight": (324, 1024),
    **{f"roi_heads.mask_head.{i}.0.weight": (256, 256, 3, 3) for i in range(4)},
    **{f"roi_heads.mask_head.{i}.1.weight": (256,) for i in range(4)},
    "roi_heads.mask_predictor.conv5_mask.weight": (256, 256, 2, 2),
    "roi_heads.mask_predictor.mask_fcn_logits.weight": (81, 256, 1, 1),
}


def network(name: str = "resnet18", width: int = 16, stem: str = "imagenet") -> ResNet:
    backbone = build_model(ModelConfig(name=name, width=width, stem=stem), seed=0).backbone
    assert isinstance(backbone, ResNet)
    return backbone


@pytest.mark.parametrize(
    ("build", "classes", "table", "tensors"),
    [(faster_rcnn_c4, 20, C4, 333), (mask_rcnn_fpn, 80, FPN, 430)],
)
def test_tensors_have_the_published_shapes(
    build: Callable[..., nn.Module], classes: int, table: dict[str, Any], tensors: int
) -> None:
    with torch.device("meta"):
        model = build(
            network("resnet50", 64), classes, settings=DetectionConfig(), mean=MEAN, std=STD
        )
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: found.get(name) for name in table} == table
    assert not any("fc." in name or "layer4" in name for name in found if build is faster_rcnn_c4
                   and name.startswith("backbone"))  # fmt: skip
    pretrained = {name.rpartition("body.")[2] for name in found if ".body." in name}
    pretrained |= {name.removeprefix("roi_heads.box_head.") for name in found if "layer4" in name}
    own = {name for name in network("resnet50", 64).state_dict() if "avgpool" not in name}
    assert own <= {name.rpartition("body.")[2] for name in pretrained}
    assert len(found) == tensors, len(found)


def scene() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 96, 128, generator=generator) for _ in range(2)]
    masks = torch.zeros(2, 96, 128, dtype=torch.uint8)
    masks[0, 20:60, 10:70], masks[1, 5:90, 60:120] = 1, 1
    boxes = torch.tensor([[10.0, 20, 70, 60], [60.0, 5, 120, 90]])
    return images, [
        {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks},
        {"boxes": boxes[:1], "labels": torch.tensor([2]), "masks": masks[:1]},
    ]


def test_losses_and_gradients_are_torchvisions_where_they_agree_by_design() -> None:
    """On the same weights, with torchvision's smooth box loss, its sampling and its pools.

    In float64, but for torchvision's loss of the proposals: its labels are float32.
    """
    settings = DetectionConfig(
        model="mask_rcnn_fpn", sides=(96,), proposals_before_nms=(2000, 1000),
        proposals=(2000, 1000), regions_per_image=8, box_loss_beta=losses.TORCHVISION_BETA,
    )  # fmt: skip
    ours = mask_rcnn_fpn(network(), 3, settings=settings, mean=MEAN, std=STD).double().train()
    plain = _torchvisions(settings)
    # torchvision's pools have no half-pixel offset, so they cannot be as published; the published
    # ones have tests of their own.
    ours.roi_heads.box_roi_pool = plain.roi_heads.box_roi_pool
    ours.roi_heads.mask_roi_pool = plain.roi_heads.mask_roi_pool
    shared = {k: v for k, v in ours.state_dict().items() if k in plain.state_dict()}
    assert len(shared) == len(ours.state_dict()) == len(plain.state_dict())
    plain.load_state_dict(shared)
    images, targets = scene()
    images = [image.double() for image in images]
    targets = [{**each, "boxes": each["boxes"].double()} for each in targets]
    found = []
    for model in (ours, plain.double().train()):
        torch.manual_seed(5)
        parts = model(images, [dict(each) for each in targets])
        sum(parts.values()).backward()
        found.append(parts)
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert float(value) == pytest.approx(float(found[1][name]), rel=1e-6), name
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = theirs[name].grad
        assert (parameter.grad is None) == (expected is None), name
        if expected is not None:
            assert torch.allclose(parameter.grad, expected, rtol=1e-5, atol=1e-8), name


def _torchvisions(settings: DetectionConfig) -> nn.Module:
    """torchvision's own Mask R-CNN with the published heads, around our stages."""
    from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads

    from fastrot.evaluation.detection.models import FpnMaps, norm

    levels = ["0", "1", "2", "3"]
    return MaskRCNN(
        FpnMaps(network()), 4, min_size=96, max_size=1333, image_mean=list(MEAN),
        image_std=list(STD),
        rpn_anchor_generator=torchvision.models.detection.rpn.AnchorGenerator(
            ((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5
        ),
        rpn_pre_nms_top_n_train=2000, rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_train=2000, rpn_post_nms_top_n_test=1000,
        box_batch_size_per_image=settings.regions_per_image,
        box_roi_pool=MultiScaleRoIAlign(levels, 7, 0),
        box_head=FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=norm),
        mask_roi_pool=MultiScaleRoIAlign(levels, 14, 0),
        mask_head=MaskRCNNHeads(256, [256] * 4, 1, norm_layer=norm),
    )  # fmt: skip


def test_images_and_targets_are_resized_as_torchvision_does() -> None:
    """To the bit, also up and down, and without objects."""
    images, targets = scene()
    targets[1] = {name: value[:0] for name, value in targets[1].items()}
    for side in (60, 96, 131):
        how = (side, 400, list(MEAN), list(STD))
        ours, theirs = ResizedImages(*how), GeneralizedRCNNTransform(*how)
        (ours_in, found), (theirs_in, expected) = ours(images, targets), theirs(images, targets)
        assert torch.equal(ours_in.tensors, theirs_in.tensors)
        for mine, other in zip(found, expected, strict=True):
            assert mine.keys() == other.keys() and mine["masks"].dtype == torch.uint8
            assert all(torch.equal(value, other[name]) for name, value in mine.items())
    assert targets[0]["masks"].shape == (2, 96, 128)


def test_the_published_box_loss_is_l1() -> None:
    model = mask_rcnn_fpn(network(), 3, settings=DetectionConfig(), mean=MEAN, std=STD)
    logits, boxes = torch.zeros(2, 4), torch.zeros(2, 16)
    labels, deltas = torch.tensor([0, 2]), torch.tensor([[9.0] * 4, [0.05, -0.1, 2.0, 0.0]])
    found = model.roi_heads._box_losses(logits, boxes, labels, deltas)
    assert float(found["loss_box_reg"]) == pytest.approx(2.15 / 2)
    assert float(found["loss_classifier"]) == pytest.approx(torch.log(torch.tensor(4.0)).item())


def test_random_parts_start_as_published() -> None:
    """Standard deviations of mmdetection's heads and pyramid; all their biases are 0."""
    torch.manual_seed(0)
    how: dict[str, Any] = {"settings": DetectionConfig(), "mean": MEAN, "std": STD}
    fpn, c4 = (build(network(), 80, **how) for build in (mask_rcnn_fpn, faster_rcnn_c4))
    kaiming, deconv = (2 / (256 * 9)) ** 0.5, (2 / (256 * 4)) ** 0.5  # of the fan out

    def xavier(ins: int, outs: int, kernel: int = 1) -> float:
        return (2 / ((ins + outs) * kernel)) ** 0.5

    expected = {
        **{f"backbone.fpn.inner_blocks.{i}.0": xavier(16 << i, 256) for i in range(4)},
        **{f"backbone.fpn.layer_blocks.{i}.0": xavier(256, 256, 9) for i in range(4)},
        **dict.fromkeys(("rpn.head.conv.0.0", "rpn.head.cls_logits", "rpn.head.bbox_pred"), 0.01),
        **{f"roi_heads.{part}_head.{i}.0": kaiming for part in ("box", "mask") for i in range(4)},
        "roi_heads.box_head.5": xavier(256 * 49, 1024),
        "roi_heads.box_predictor.cls_score": 0.01,
        "roi_heads.box_predictor.bbox_pred": 0.001,
        "roi_heads.mask_predictor.conv5_mask": deconv,
        "roi_heads.mask_predictor.mask_fcn_logits": (2 / 81) ** 0.5,
    }
    for model in (fpn, c4):
        own = dict(model.named_modules())
        names = [name for name in expected if name in own]
        assert len(names) == (len(expected) if model is fpn else 5)
        for name in names:
            weight = own[name].weight.detach()
            assert float(weight.std()) == pytest.approx(expected[name], rel=0.1), name
            assert abs(float(weight.mean())) < 0.1 * expected[name], name
        biases = [p for n, p in model.named_parameters() if n.endswith("bias") and "body" not in n]
        assert biases and not any(bias.any() for bias in biases)
    for name in (name for name in expected if "fpn" in name or name.endswith("box_head.5")):
        furthest = float(fpn.get_submodule(name).weight.abs().max())
        assert furthest <= 3**0.5 * expected[name] * 1.0001, f"{name} is not uniform"


def test_strides_of_maps() -> None:
    assert stride_of(network(), "layer3") == 16
    assert stride_of(network(stem="small"), "layer3") == 4
    pool = mask_rcnn_fpn(network(), 3, settings=DetectionConfig(), mean=MEAN, std=STD).roi_heads
    assert pool.box_roi_pool.strides == {"0": 4, "1": 8, "2": 16, "3": 32}


def test_a_dilated_stage_keeps_the_size_and_the_field_of_view() -> None:
    backbone = network("resnet50", 8)
    dilate(backbone.get_submodule("layer3"), 2)
    dilate(backbone.get_submodule("layer4"), 4)
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    ours = dict(backbone.named_modules())
    for name, layer in theirs.named_modules():
        if isinstance(layer, nn.Conv2d):
            own = ours[name]
            assert isinstance(own, nn.Conv2d), name
            assert (own.stride, own.dilation, own.padding) == (
                layer.stride, layer.dilation, layer.padding,
            ), name  # fmt: skip


def test_a_dilated_basic_block_dilates_its_first_convolution_alone() -> None:
    """As mmseg's, and the maps keep their sizes."""
    backbone = network("resnet34", 8)
    dilate(backbone.get_submodule("layer3"), 2)
    dilate(backbone.get_submodule("layer4"), 4)
    for layer, first, others in (("layer3", 1, 2), ("layer4", 2, 4)):
        for index, block in enumerate(backbone.get_submodule(layer).children()):
            size = others if index else first
            for name, dilation in (("conv1", size), ("conv2", 1)):
                conv = block.get_submodule(name)
                assert isinstance(conv, nn.Conv2d)
                assert conv.stride == (1, 1), (layer, index, name)
                assert conv.dilation == conv.padding == (dilation,) * 2, (layer, index, name)
    stages = backbone.stages(torch.zeros(2, 3, 64, 96))
    assert {tuple(stages[f"layer{k}"].shape[2:]) for k in (2, 3, 4)} == {(8, 12)}
