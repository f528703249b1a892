"""How a segmenter sees an image in training: resize, crop, flip, distort; all draws keyed.

The augmentation of mmsegmentation's published configurations: ``Resize`` with a ratio range,
``RandomCrop`` with ``cat_max_ratio``, ``RandomFlip``, ``PhotoMetricDistortion``, ``Pad``.

Shapes: H and W rows and columns of an image, S side of a crop.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as V

from fastrot.data.sampling.philox import Stream, below, draw, uniform
from fastrot.evaluation.segmentation.settings import SegmentationConfig

IGNORED = 255
"""Class of pixels that do not count."""

_CROPS = 10
_BRIGHTNESS, _FACTOR, _HUE = 32.0, (0.5, 1.5), 0.1  # hue: 18 of 180 steps of OpenCV's circle


class Draws:
    """Random numbers of one sample in one epoch, in the order in which they are asked for."""

    def __init__(self, seed: int, epoch: int, sample: int) -> None:
        self._key = (seed, epoch, np.array([sample]), Stream.AUGMENT)
        self._asked = 0

    def _bits(self) -> np.ndarray:
        bits = draw(*self._key, self._asked)[0]
        self._asked += 1
        return bits

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * float(uniform(self._bits())[0])

    def below(self, bound: int) -> int:
        """Return a whole number in [0, bound)."""
        return int(below(self._bits(), bound)[0])


def fit(image: torch.Tensor, scale: tuple[float, float]) -> tuple[int, int]:
    """Return rows and columns of an image (3, H, W) resized into a long and a short side."""
    height, width = image.shape[-2:]
    longer, shorter = max(scale), min(scale)
    factor = min(longer / max(height, width), shorter / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resized(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize an image (3, H, W), uint8, bilinearly and without smoothing, as OpenCV does."""
    out: torch.Tensor = V.resize(image, list(size), antialias=False)
    return out


def augment(
    image: torch.Tensor,
    labels: torch.Tensor,
    config: SegmentationConfig,
    draws: Draws,
    fill: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what training sees of an image, (3, S, S), uint8, and its classes, (S, S), uint8.

    Args:
        image: of shape (3, H, W), uint8.
        labels: of shape (H, W), uint8; ``IGNORED`` where a pixel does not count.
        config: settings of the protocol.
        draws: random numbers of this sample.
        fill: colour of (3,), uint8, of pixels beside a small image: the mean, which is 0 for the
            model.
    """
    ratio = draws.uniform(*config.ratio)
    size = fit(image, (config.scale[0] * ratio, config.scale[1] * ratio))
    image = resized(image, size)
    labels = F.interpolate(labels[None, None].float(), size, mode="nearest")[0, 0].byte()
    top, left = _corner(labels, config, draws)
    rows, columns = slice(top, top + config.crop), slice(left, left + config.crop)
    image, labels = image[:, rows, columns], labels[rows, columns]
    if draws.uniform() < config.flip:
        image, labels = image.flip(-1), labels.flip(-1)
    if config.distort:
        image = distorted(image, draws)
    height, width = labels.shape
    shown = fill[:, None, None].expand(3, config.crop, config.crop).contiguous()
    shown[:, :height, :width] = image
    counted = torch.full((config.crop, config.crop), IGNORED, dtype=torch.uint8)
    counted[:height, :width] = labels
    return shown, counted


def _corner(labels: torch.Tensor, config: SegmentationConfig, draws: Draws) -> tuple[int, int]:
    """Draw the corner of a crop, again while one class covers too much of it."""
    height, width = labels.shape
    for _ in range(_CROPS):
        top = draws.below(max(0, height - config.crop) + 1)
        left = draws.below(max(0, width - config.crop) + 1)
        if config.most_of_a_class >= 1:
            break
        crop = labels[top : top + config.crop, left : left + config.crop]
        counts = torch.bincount(crop[crop != IGNORED].flatten(), minlength=1)
        several = int((counts > 0).sum()) > 1
        if several and int(counts.max()) < config.most_of_a_class * int(counts.sum()):
            break
    return top, left


def distorted(image: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue of an image (3, H, W), uint8.

    Each with probability 0.5: brightness by up to 32 levels; contrast (before or after the colours)
    and saturation, in HSV, by a factor of 0.5 to 1.5; hue by up to a tenth of its circle.
    """
    pixels = image.float()
    if draws.uniform() < 0.5:
        pixels = (pixels + draws.uniform(-_BRIGHTNESS, _BRIGHTNESS)).clamp_(0, 255)
    contrast_first = draws.uniform() < 0.5
    contrast = draws.uniform(*_FACTOR) if draws.uniform() < 0.5 else 1.0
    saturation = draws.uniform(*_FACTOR) if draws.uniform() < 0.5 else 1.0
    hue = draws.uniform(-_HUE, _HUE) if draws.uniform() < 0.5 else 0.0
    if contrast_first:
        pixels = (pixels * contrast).clamp_(0, 255)
    if saturation != 1:
        pixels = _saturated(pixels, saturation)
    if hue:
        pixels = V.adjust_hue(pixels / 255, hue) * 255
    if not contrast_first:
        pixels = (pixels * contrast).clamp_(0, 255)
    return pixels.round_().clamp_(0, 255).byte()


def _saturated(pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiply the saturation in HSV, capped at 1: scale distances from the largest channel."""
    value = pixels.amax(0, keepdim=True)
    spread = value - pixels.amin(0, keepdim=True)
    most = torch.where(spread > 0, value / spread.clamp_min(1e-6), factor)
    return value - (value - pixels) * most.clamp_max(factor)
