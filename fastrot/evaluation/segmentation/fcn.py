"""FCN-d8: the published segmenter, on a dilated plain ResNet (MMSelfSup 0.x, ``fcn_r50-d8``).

Long et al., 2015. The strides of layer3 and layer4 become dilations, so maps have an eighth of the
rows of the image. A head on layer4 classifies each pixel; in training, an auxiliary one on layer3
helps.

Shapes: N images, H and W rows and columns, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fastrot.evaluation.dense.stages import Stages, dilate
from fastrot.models.backbones import ResNet
from fastrot.models.layers import BatchNorm


class FcnHead(nn.Module):
    """Convolutions of 3 x 3, dropout of whole channels, and a classifier of each pixel.

    Args:
        channels_in: channels of the map.
        channels: channels of the convolutions.
        classes: K.
        convolutions: their number.
        concatenate: whether another convolution sees their result beside the map itself.
    """

    def __init__(
        self, channels_in: int, channels: int, classes: int, *, convolutions: int, concatenate: bool
    ) -> None:
        super().__init__()
        ins = [channels_in] + [channels] * (convolutions - 1)
        self.convs = nn.Sequential(*(_convolution(each, channels) for each in ins))
        self.conv_cat = _convolution(channels_in + channels, channels) if concatenate else None
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        assert self.conv_seg.bias is not None
        nn.init.zeros_(self.conv_seg.bias)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Map (N, channels_in, h, w) to logits (N, K, h, w)."""
        x = self.convs(maps)
        if self.conv_cat is not None:
            x = self.conv_cat(torch.cat([maps, x], 1))
        logits: torch.Tensor = self.conv_seg(self.dropout(x))
        return logits


def _convolution(channels_in: int, channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, BatchNorm(channels))


class Fcn(nn.Module):
    """The segmenter.

    Args:
        network: the pretrained ResNet, whose modules become part of it.
        classes: K.
        align_corners: how logits are resized to the image.
    """

    def __init__(self, network: ResNet, classes: int, *, align_corners: bool) -> None:
        super().__init__()
        dilate(network.get_submodule("layer3"), 2)
        dilate(network.get_submodule("layer4"), 4)
        self.backbone = Stages(network)
        self.align_corners = align_corners
        channels = self.backbone.channels
        self.decode_head = FcnHead(
            channels["layer4"], channels["layer4"] // 4, classes, convolutions=2, concatenate=True
        )
        self.auxiliary_head = FcnHead(
            channels["layer3"], channels["layer3"] // 4, classes, convolutions=1, concatenate=False
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map images (N, 3, H, W) to logits (N, K, H, W): of the head, of the auxiliary one.

        In eval mode there is no auxiliary one.
        """
        maps = self.backbone(images)
        size = images.shape[-2:]
        logits = self.resize(self.decode_head(maps["layer4"]), size)
        if not self.training:
            return logits, None
        return logits, self.resize(self.auxiliary_head(maps["layer3"]), size)

    def resize(self, logits: torch.Tensor, size: torch.Size | tuple[int, int]) -> torch.Tensor:
        """Resize logits (N, K, h, w) to (N, K, *size), bilinearly."""
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)
