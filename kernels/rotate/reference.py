"""The reference for ``rotate_views``, in plain torch, and its lookup table.

Direction: views are turned counter-clockwise, as by ``torch.rot90`` and ``numpy.rot90``, and as in
RotNet and MMSelfSup 0.x (class k = k turns). ``mmcv.imrotate`` turns clockwise: a head trained with
it has classes 1 and 3 swapped. Views are image-major: row n*V + v is image n. Views are turned
after crop and flip (VISSL turns before them).

Shapes: N images, V views of each, S side, C = 3 or 4 channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def normalisation_table(
    mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> torch.Tensor:
    """Return the normalised value of every byte in every channel, of shape (256, 3).

    Values are computed in float32, in torchvision's order of operations (ToTensor, Normalize), then
    rounded once to ``dtype``; a float32 table therefore equals torchvision's pixels bit for bit.

    Args:
        mean: per channel, in [0, 1].
        std: per channel, in [0, 1], positive.
        dtype: float32, float16 or bfloat16.
    """
    bytes_256x3 = torch.arange(256, dtype=torch.float32)[:, None].expand(256, 3)
    shift = torch.tensor(mean, dtype=torch.float32)
    scale = torch.tensor(std, dtype=torch.float32)
    return ((bytes_256x3 / 255 - shift) / scale).to(dtype)


def rotate_views(
    images: torch.Tensor,
    turns: torch.Tensor,
    flips: torch.Tensor,
    table: torch.Tensor,
    views: torch.Tensor,
) -> None:
    """Fill ``views``: flip, turn, look up, on any device.

    Args:
        images: of shape (N, S, S, 3), uint8.
        turns: of shape (N, V), uint8, quarter turns counter-clockwise, taken modulo 4.
        flips: of shape (N,), bool: mirror left to right before the turn.
        table: of shape (256, 3), dtype of ``views``.
        views: of shape (N*V, S, S, C), filled; a fourth channel becomes zero.
    """
    n, side = images.shape[:2]
    channel = torch.arange(3, device=images.device)
    # Looking up before the turn gives the same words with V times less work.
    pixels_NSSC = table[images.int(), channel]
    pixels_NSSC = torch.where(flips[:, None, None, None], pixels_NSSC.flip(2), pixels_NSSC)
    quarter_NV = turns & 3
    views_NVSSC = views.view(n, turns.shape[1], side, side, -1)
    for quarter in range(4):
        image, view = torch.nonzero(quarter_NV == quarter, as_tuple=True)
        turned = torch.rot90(pixels_NSSC, quarter, dims=(1, 2))
        views_NVSSC[image, view, :, :, :3] = turned[image]
    views_NVSSC[..., 3:] = 0
