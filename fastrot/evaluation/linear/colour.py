"""Colour jitter and lighting of a batch on its device, bit-identical to Pillow's.

MMSelfSup 0.x trains its ImageNet heads on crop, flip, ``ColorJitter(0.4, 0.4, 0.4)``,
``ToTensor``, ``Lighting(0.1)``, ``Normalize``, in this order. The jitter works on bytes:
brightness, contrast and saturation, in an order drawn for each image, each end with whole levels,
rounded down. Lighting (Krizhevsky et al., 2012) adds one colour to the whole image, drawn along
the principal components of ImageNet's pixels, without clipping. ``colour_reference.py`` does the
same with Pillow and torchvision. (A GPU divides by multiplying, so a normalised value can differ
in its last bit there; the levels before that cannot.)

All three operations move a pixel away from, or towards, a grey: black, the image's mean grey, the
pixel's own grey. So one pass performs any of them, although images differ in their order.

Shapes: N images, S side.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fastrot.data.sampling.philox import Stream, below, draw, uniform

BRIGHTNESS, CONTRAST, SATURATION = range(3)

_STRENGTH = 0.4
_LIGHTING = 0.1
_ORDERS = np.array(list(permutations((BRIGHTNESS, CONTRAST, SATURATION))))
# ImageNet's eigenvalues, and its eigenvectors in columns, which MMSelfSup 0.x took from the first
# Torch trainers.
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
_LUMA = (19595.0, 38470.0, 7471.0)  # weights of Pillow's grey, in 1 / 65536
_ONE = 65536.0


class Colours(NamedTuple):
    """The colour changes of each image in a batch.

    Attributes:
        factors: factors of brightness, contrast and saturation, of shape (N, 3), float32.
        order: the operations that come first, second and third, of shape (N, 3), int64.
        light: values added to red, green and blue in [0, 1], of shape (N, 3), float32.
    """

    factors: NDArray[np.float32]
    order: NDArray[np.int64]
    light: NDArray[np.float32]


def draw_colours(seed: int, epoch: int, ids: ArrayLike) -> Colours:
    """Draw colour changes, a pure function of seed, epoch and sample, whatever the batch.

    Args:
        seed: 64-bit key.
        epoch: index of the epoch.
        ids: indices of the samples, of shape (N,).
    """
    bits = draw(seed, epoch, ids, Stream.JITTER)
    factors = 1 + _STRENGTH * (2 * uniform(np.stack(bits[:3], axis=1)) - 1)
    order = _ORDERS[below(bits[3], len(_ORDERS))]
    one, two, three, four = (uniform(word) for word in draw(seed, epoch, ids, Stream.LIGHTING))
    # Box and Muller: two normal numbers from the first pair, the third from the second.
    first, second = (np.sqrt(-2 * np.log1p(-u)) for u in (one, three))
    angle = 2 * np.pi * two
    normal = np.stack(
        [first * np.cos(angle), first * np.sin(angle), second * np.cos(2 * np.pi * four)], axis=1
    )
    light = (normal * _LIGHTING * _EIGENVALUES) @ _COMPONENTS.T
    return Colours(factors.astype(np.float32), order, light.astype(np.float32))


def coloured_views(
    images: torch.Tensor,
    flips: torch.Tensor,
    colours: Colours,
    mean: Sequence[float],
    std: Sequence[float],
) -> torch.Tensor:
    """Flip, jitter, light and normalise a batch.

    Args:
        images: of shape (N, S, S, 3), uint8.
        flips: of shape (N,), bool: mirror this image left to right.
        colours: colour changes of the N images.
        mean: per channel, in [0, 1].
        std: per channel, in [0, 1].

    Returns:
        Views of shape (N, 3, S, S), float32, channels-last in memory.
    """
    device = images.device
    images = torch.where(flips[:, None, None, None], images.flip(2), images)
    x_N3SS = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    factors = np.take_along_axis(colours.factors, colours.order, axis=1)
    for place in range(colours.order.shape[1]):
        _jitter(
            x_N3SS,
            torch.from_numpy(colours.order[:, place].copy()).to(device, non_blocking=True),
            torch.from_numpy(factors[:, place].copy()).to(device, non_blocking=True),
        )
    light = torch.from_numpy(colours.light).to(device, non_blocking=True)
    x_N3SS.div_(255).add_(light[:, :, None, None])
    for channel in range(3):
        x_N3SS[:, channel].sub_(mean[channel]).div_(std[channel])
    return x_N3SS.contiguous(memory_format=torch.channels_last)


def _jitter(x_N3SS: torch.Tensor, operation: torch.Tensor, factor: torch.Tensor) -> None:
    """Apply one operation to each image, in place; levels are whole before and after."""
    operation, factor = operation.view(-1, 1, 1, 1), factor.view(-1, 1, 1, 1)
    # Whole numbers below 2^24 up to the division: float32 computes them exactly.
    grey = x_N3SS[:, :1] * _LUMA[0]
    grey.add_(x_N3SS[:, 1:2] * _LUMA[1]).add_(x_N3SS[:, 2:] * _LUMA[2])
    grey.add_(_ONE / 2).div_(_ONE).floor_()
    mean = grey.mean((1, 2, 3), keepdim=True, dtype=torch.float64).add_(0.5).floor_().float()
    aim = torch.where(operation == SATURATION, grey, mean * (operation == CONTRAST))
    # In Pillow's order of operations, so that each rounds as in Pillow.
    x_N3SS.sub_(aim).mul_(factor).add_(aim).clamp_(0, 255).floor_()
