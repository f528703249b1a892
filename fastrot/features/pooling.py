"""Pooling as published: from the maps of a stage to a feature of about 9,000 values.

FAIR's benchmark (Goyal et al., 2019) and MMSelfSup 0.x average the five maps of a ResNet at 224 px
over these windows. They overlap, so adaptive pooling gives different features:

====== ===== ======================= ===== =====
stage  map   window / stride / pad   out   D (ResNet-50)
====== ===== ======================= ===== =====
stem   112   10 / 10 / 4             12    9216
layer1 56    16 / 8 / 0              6     9216
layer2 28    13 / 5 / 0              4     8192
layer3 14    8 / 3 / 0               3     9216
layer4 7     6 / 1 / 0               2     8192
====== ===== ======================= ===== =====

The zeros of the stem's padding count in its averages, as published. Maps of another size (other
crops, the small stem) are pooled adaptively to the published grid, or kept if they are smaller.
The blocks of RotNet's network, for which nothing is published, are pooled to at most 6x6.

Shapes: N images, C channels, H = W side of a map, G side of the pooled map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fastrot.features.manifest import LayerInfo


class _Window(NamedTuple):
    side: int
    kernel: int
    stride: int
    padding: int
    grid: int


_PUBLISHED = {
    "stem": _Window(112, 10, 10, 4, 12),
    "layer1": _Window(56, 16, 8, 0, 6),
    "layer2": _Window(28, 13, 5, 0, 4),
    "layer3": _Window(14, 8, 3, 0, 3),
    "layer4": _Window(7, 6, 1, 0, 2),
}
_OTHER_GRID = 6


def pool(stage: str, maps: torch.Tensor) -> torch.Tensor:
    """Pool the output of a stage to one feature per image.

    Args:
        stage: name of the stage; ``pool`` is used as it is.
        maps: of shape (N, C, H, H), or (N, C) for ``pool``; any float type, averaged in float32.

    Returns:
        Features of shape (N, C * G * G), float32, channel-major.
    """
    if maps.ndim == 2:
        return maps.float()
    side = maps.shape[-1]
    window = _PUBLISHED.get(stage)
    if window and side == window.side:
        pooled = F.avg_pool2d(maps.float(), window.kernel, window.stride, window.padding)
    elif (grid := _grid(stage, side)) == side:
        pooled = maps.float()
    else:
        pooled = F.adaptive_avg_pool2d(maps.float(), grid)
    return pooled.flatten(1)


def layer_info(stage: str, maps: torch.Tensor) -> LayerInfo:
    """Return the layout that ``pool`` gives maps of this shape."""
    channels = maps.shape[1]
    if maps.ndim == 2:
        return LayerInfo(channels, 1, channels, "global average")
    side = maps.shape[-1]
    window, grid = _PUBLISHED.get(stage), _grid(stage, side)
    if window and side == window.side:
        text = f"published {window.kernel}/{window.stride}/{window.padding} of {side}x{side}"
    elif grid == side:
        text = f"none, the {side}x{side} map"
    else:
        text = f"adaptive {grid}x{grid} of {side}x{side}"
    return LayerInfo(channels, grid, channels * grid * grid, text)


def layer_infos(
    stages: Callable[[torch.Tensor], Mapping[str, torch.Tensor]], side: int
) -> dict[str, LayerInfo]:
    """Return the layout that ``pool`` gives every stage of a backbone, for crops of one size.

    Args:
        stages: maps views (N, 3, S, S) to the outputs of the stages by name.
        side: S in pixels.
    """
    with torch.inference_mode():
        outputs = stages(torch.zeros(1, 3, side, side))
    return {name: layer_info(name, maps) for name, maps in outputs.items()}


def _grid(stage: str, side: int) -> int:
    window = _PUBLISHED.get(stage)
    return min(side, window.grid if window else _OTHER_GRID)
