"""The published detectors, assembled from torchvision's parts around a ResNet of fastrot.

``faster_rcnn_c4``: Faster R-CNN R50-C4 with a norm after the last stage (MMSelfSup 0.x,
``faster_rcnn_r50_c4_mstrain_24k_voc0712``; He et al., 2020). ``mask_rcnn_fpn``: Mask R-CNN R50-FPN
with norms in FPN and heads and a box head of four convolutions and one linear layer (MMSelfSup
0.x, ``mask_rcnn_r50_fpn_mstrain_1x_coco``). The stages start from pretrained weights; everything
else, also the extra norm, is random, with mmdetection's initialisation.

Differs from mmdetection: anchors that leave the image also count in the training of C4's proposals
(there ``allowed_border=0``; detectron2's C4 has no such border either). Predictors have boxes and a
mask of the background, which no loss and no result sees. In Mask R-CNN, a region is for the object
that it overlaps most (there ``match_low_quality``: the best region of an object is for that one).

Shapes: N images, R regions of interest, K classes without the background.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from fastrot.evaluation.dense.stages import LAYERS, Stages, channels_of, stride_of
from fastrot.evaluation.detection.losses import Heads, ProposalNetwork
from fastrot.evaluation.detection.matching import AnchorMatcher
from fastrot.evaluation.detection.pools import C4Pool, PyramidPool
from fastrot.evaluation.detection.settings import DetectionConfig
from fastrot.models.backbones import ResNet
from fastrot.models.layers import BatchNorm

_FPN_CHANNELS = 256

norm = partial(BatchNorm, relu=False)
"""A batch norm that nothing follows, as torchvision's blocks expect one."""


class C4Maps(nn.Module):
    """The stages up to layer3, whose map is the only one."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.body = Stages(network, "layer3")
        self.out_channels = self.body.channels["layer3"]

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Map images (N, 3, H, W) to the map of layer3, named "0"."""
        return OrderedDict({"0": self.body(images)["layer3"]})


class C4Head(nn.Module):
    """The last stage, a norm of its own, and the average over the region."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.layer4 = network.get_submodule("layer4")
        self.out_channels = channels_of(self.layer4)
        self.norm = norm(self.out_channels)

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """Map regions (R, C, 14, 14) to features (R, D)."""
        features: torch.Tensor = self.norm(self.layer4(regions)).mean((2, 3))
        return features


class FpnMaps(nn.Module):
    """The stages and a feature pyramid on them, with norms, and a coarsest level by pooling."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.body = Stages(network)
        channels = [self.body.channels[layer] for layer in LAYERS]
        self.fpn = FeaturePyramidNetwork(
            channels, _FPN_CHANNELS, extra_blocks=LastLevelMaxPool(), norm_layer=norm
        )
        for layer in self.fpn.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
        self.out_channels = _FPN_CHANNELS

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Map images (N, 3, H, W) to five maps: "0" to "3", and "pool"."""
        maps = self.body(images)
        maps = OrderedDict((str(level), maps[layer]) for level, layer in enumerate(LAYERS))
        pyramid: OrderedDict[str, torch.Tensor] = self.fpn(maps)
        return pyramid


class ResizedImages(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's normalised, resized and padded images; masks are resized as bytes.

    The same bits, for less than half of the time that the way through floats takes.
    """

    def resize(
        self, image: torch.Tensor, target: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
        """Return an image (3, H, W) and its target, resized; masks are uint8, of (n, H, W)."""
        masks = None if target is None else target.pop("masks", None)
        image, target = super().resize(image, target)
        if target is not None and masks is not None:
            target["masks"] = F.interpolate(masks[:, None], image.shape[-2:], mode="nearest")[:, 0]
        return image, target


def faster_rcnn_c4(network: ResNet, classes: int, **how: Any) -> GeneralizedRCNN:
    """Build Faster R-CNN C4; arguments as ``mask_rcnn_fpn``."""
    head = C4Head(network)  # takes layer4; the maps take the rest
    return _assembled(
        C4Maps(network),
        box_pool=C4Pool(stride_of(network, "layer3")),
        box_head=head,
        box_features=head.out_channels,
        classes=classes,
        anchor_sizes=[(32, 64, 128, 256, 512)],
        **how,
    )


def mask_rcnn_fpn(
    network: ResNet,
    classes: int,
    *,
    settings: DetectionConfig,
    mean: Sequence[float],
    std: Sequence[float],
    masks: bool = True,
) -> GeneralizedRCNN:
    """Build Mask R-CNN with a feature pyramid.

    Args:
        network: the pretrained ResNet, whose modules become part of the detector.
        classes: K.
        settings: sizes, numbers of regions, thresholds.
        mean: mean of each channel in [0, 1].
        std: standard deviation of each channel in [0, 1].
        masks: whether to predict masks.
    """
    channels = _FPN_CHANNELS
    strides = {str(level): stride_of(network, layer) for level, layer in enumerate(LAYERS)}
    mask_parts: dict[str, Any] = {}
    if masks:
        mask_parts = {
            "mask_roi_pool": PyramidPool(strides, 14),
            "mask_head": MaskRCNNHeads(channels, [channels] * 4, 1, norm_layer=norm),
            "mask_predictor": _with_zero_biases(MaskRCNNPredictor(channels, channels, classes + 1)),
        }
    box_head = FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [1024], norm_layer=norm)
    for layer in box_head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return _assembled(
        FpnMaps(network),
        box_pool=PyramidPool(strides, 7),
        box_head=_with_zero_biases(box_head),
        box_features=1024,
        classes=classes,
        anchor_sizes=[(32,), (64,), (128,), (256,), (512,)],
        settings=settings,
        mean=mean,
        std=std,
        **mask_parts,
    )


def _box_predictor(features: int, classes: int) -> nn.Module:
    predictor = FastRCNNPredictor(features, classes + 1)
    nn.init.normal_(predictor.cls_score.weight, std=0.01)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
    return _with_zero_biases(predictor)


def _with_zero_biases(part: nn.Module) -> nn.Module:
    for name, parameter in part.named_parameters():
        if name.endswith("bias"):  # that of a norm is 0 already
            nn.init.zeros_(parameter)
    return part


def _assembled(
    maps: C4Maps | FpnMaps,
    *,
    box_pool: nn.Module,
    box_head: nn.Module,
    box_features: int,
    classes: int,
    anchor_sizes: Sequence[tuple[int, ...]],
    settings: DetectionConfig,
    mean: Sequence[float],
    std: Sequence[float],
    **mask_parts: Any,
) -> GeneralizedRCNN:
    anchors = AnchorGenerator(tuple(anchor_sizes), ((0.5, 1.0, 2.0),) * len(anchor_sizes))
    proposals = ProposalNetwork(
        anchors,
        RPNHead(maps.out_channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=settings.anchors_per_image,
        positive_fraction=0.5,
        pre_nms_top_n=dict(
            zip(("training", "testing"), settings.proposals_before_nms, strict=True)
        ),
        post_nms_top_n=dict(zip(("training", "testing"), settings.proposals, strict=True)),
        nms_thresh=0.7,
    )
    proposals.proposal_matcher = AnchorMatcher(0.7, 0.3, least=0.3)
    heads = Heads(
        box_pool,
        box_head,
        _box_predictor(box_features, classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=settings.regions_per_image,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=settings.least_score,
        nms_thresh=0.5,
        detections_per_img=settings.detections,
        **mask_parts,
    )
    proposals.beta = heads.beta = settings.box_loss_beta
    # In training it draws one of the sides; in evaluation it takes the last one.
    transform = ResizedImages(settings.sides, settings.longest_side, list(mean), list(std))
    return GeneralizedRCNN(maps, proposals, heads, transform)
