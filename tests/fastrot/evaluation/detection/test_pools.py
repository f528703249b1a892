"""Pooled regions: closed forms on maps of positions, and torchvision's but for the offset."""

from __future__ import annotations

import torch
from torchvision.ops import MultiScaleRoIAlign

from fastrot.evaluation.detection.pools import C4Pool, PyramidPool


def test_regions_of_the_one_map_are_where_the_boxes_are() -> None:
    """A map whose value is its own position in pixels gives back the positions of the bins."""
    stride = 16
    columns = (torch.arange(20.0) + 0.5) * stride
    maps = columns.expand(1, 1, 20, 20)
    box = torch.tensor([[40.0, 30, 152, 254]])
    pooled = C4Pool(stride)({"0": maps}, [box], [(320, 320)])
    centres = 40 + (torch.arange(14) + 0.5) * 112 / 14
    torch.testing.assert_close(pooled[0, 0, 3], centres)


def test_regions_of_a_pyramid_are_where_the_boxes_are() -> None:
    """As above, on the map of the fitting level; each map has an offset that names it."""
    strides = {"0": 4, "1": 8, "2": 16, "3": 32}
    maps = {
        name: ((torch.arange(512.0 // stride) + 0.5) * stride + 1000 * level)
        .expand(2, 1, 512 // stride, 512 // stride)
        .clone()
        for level, (name, stride) in enumerate(strides.items())
    }
    maps["pool"] = torch.full((2, 1, 8, 8), torch.nan)  # no region comes from it
    for value in maps.values():
        value[1] *= -1
    # Side by side: areas just below and at 112 x 112, 224 x 224 and 448 x 448; a small one.
    sides = torch.tensor([223.0, 111, 448, 224, 112, 30, 447])
    level = torch.tensor([1, 0, 3, 2, 1, 0, 2])
    start = torch.tensor([40.0, 41, 33, 35, 99, 256, 34])
    boxes = torch.stack([start, start, start + sides, start + sides], 1)
    pooled = PyramidPool(strides, 7)(maps, [boxes[:3], boxes[3:]], [(512, 512)] * 2)
    centres = start[:, None] + (torch.arange(7) + 0.5) * sides[:, None] / 7
    expected = (centres + 1000 * level[:, None]) * torch.tensor([1.0] * 3 + [-1] * 4)[:, None]
    assert pooled.shape == (7, 1, 7, 7)
    torch.testing.assert_close(pooled[:, 0, 3], expected)


def test_regions_of_a_pyramid_are_torchvisions_but_for_the_offset() -> None:
    """torchvision's, given boxes that are moved by half a row of the map of their level."""
    generator = torch.Generator().manual_seed(0)
    strides = {"0": 4, "1": 8, "2": 16, "3": 32}
    maps = {
        name: torch.rand(2, 3, 480 // s, 640 // s, generator=generator, requires_grad=True)
        for name, s in strides.items()
    }
    corners = torch.rand(40, 2, generator=generator) * 120
    lengths = 2 ** (torch.rand(40, 1, generator=generator) * 4.5 + 5)
    sides = lengths * (0.7 + 0.6 * torch.rand(40, 2, generator=generator))
    boxes = torch.cat([corners, corners + sides], 1)
    level = ((sides.prod(1).sqrt() / 56).log2().floor()).clamp(0, 3)
    assert level.unique().tolist() == [0, 1, 2, 3]
    moved = boxes - (4 << level.int())[:, None] / 2
    shapes = [(480, 640)] * 2
    ours = PyramidPool(strides, 7)(maps, [boxes[:25], boxes[25:]], shapes)
    # The moved boxes have the same sizes, so they come from the same levels.
    theirs = MultiScaleRoIAlign(list(maps), 7, 0)(maps, [moved[:25], moved[25:]], shapes)
    torch.testing.assert_close(ours, theirs)
    weights = torch.rand(ours.shape, generator=generator)
    leaves = list(maps.values())
    found = torch.autograd.grad((ours * weights).sum(), leaves)
    torch.testing.assert_close(found, torch.autograd.grad((theirs * weights).sum(), leaves))
