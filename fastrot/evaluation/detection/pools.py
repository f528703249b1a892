"""RoIAlign as mmdetection's: with half-pixel offset, and as many samples as the size of a bin asks.

Without the offset, a region is read half a row and half a column of its map too far down and to
the right. torchvision's ``MultiScaleRoIAlign`` has no way to ask for it.

Shapes: N images, R regions of interest of all of them, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper, _convert_to_roi_format

_ADAPTIVE = 0
"""Samples per bin and axis: as many as the bin has rows or columns of the map, rounded up."""


class C4Pool(nn.Module):
    """RoIAlign on one map.

    Args:
        stride: pixels of the image per row of the map.
        size: rows and columns of a pooled region.
    """

    def __init__(self, stride: int, size: int = 14) -> None:
        super().__init__()
        self.stride, self.size = stride, size

    def forward(
        self,
        features: dict[str, torch.Tensor],
        boxes: list[torch.Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> torch.Tensor:
        """Pool boxes, in pixels of the images, from the map "0": (R, C, size, size)."""
        pooled: torch.Tensor = roi_align(
            features["0"], boxes, self.size, 1 / self.stride, _ADAPTIVE, aligned=True
        )
        return pooled


class PyramidPool(nn.Module):
    """RoIAlign on the map of a pyramid that suits the size of each region.

    A region with the area of 224 x 224 pixels comes from the map of stride 16, one of twice the
    sides from the next coarser map (Lin et al., 2017, equation 1).

    Args:
        strides: pixels of the image per row of each map, by name, powers of two from fine to
            coarse.
        size: rows and columns of a pooled region.
    """

    def __init__(self, strides: Mapping[str, int], size: int) -> None:
        super().__init__()
        self.strides, self.size = dict(strides), size
        levels = [stride.bit_length() - 1 for stride in strides.values()]
        self.level_of = LevelMapper(levels[0], levels[-1])

    def forward(
        self,
        features: dict[str, torch.Tensor],
        boxes: list[torch.Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> torch.Tensor:
        """Pool boxes, in pixels of the images, from maps (N, C, h, w): (R, C, size, size)."""
        regions, levels = _convert_to_roi_format(boxes), self.level_of(boxes)
        first = features[next(iter(self.strides))]
        pooled = first.new_zeros(len(regions), first.shape[1], self.size, self.size)
        for level, (name, stride) in enumerate(self.strides.items()):
            (chosen,) = torch.where(levels == level)
            part = roi_align(
                features[name], regions[chosen], self.size, 1 / stride, _ADAPTIVE, aligned=True
            )
            pooled[chosen] = part.to(pooled)  # under autocast, RoIAlign is in float32
        return pooled
