"""Losses of a segmenter in training, and its classes of an image in testing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from fastrot.evaluation.dense.loader import DenseBatch
from fastrot.evaluation.segmentation.augment import IGNORED, fit, resized
from fastrot.evaluation.segmentation.fcn import Fcn
from fastrot.evaluation.segmentation.settings import SegmentationConfig


class SegmentationLosses:
    """The cross-entropy of both heads, averaged over all pixels, as published.

    Ignored pixels add nothing to the sum, but they count in the mean (mmseg's
    ``CrossEntropyLoss`` with ``avg_non_ignore=False``).

    Args:
        mean: mean of each channel in [0, 1].
        std: standard deviation of each channel in [0, 1].
        auxiliary_weight: weight of the auxiliary head.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], *, auxiliary_weight: float
    ) -> None:
        self._mean, self._std = mean, std
        self._weight = auxiliary_weight

    def __call__(self, model: nn.Module, batch: DenseBatch) -> dict[str, torch.Tensor]:
        """Return the losses of a batch of crops of one size."""
        dtype = next(model.parameters()).dtype
        images = normalised(torch.stack(batch.images), self._mean, self._std, dtype)
        labels = torch.stack(batch.targets).long()
        logits, auxiliary = model(images.contiguous(memory_format=torch.channels_last))
        return {
            "loss_decode": _cross_entropy(logits, labels),
            "loss_auxiliary": self._weight * _cross_entropy(auxiliary, labels),
        }


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if logits.dtype != torch.float64:
        logits = logits.float()
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum") / labels.numel()


def normalised(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> torch.Tensor:
    """Return images (N, 3, H, W), uint8, as the model takes them."""
    centre, scale = (
        torch.tensor(each, dtype=dtype, device=images.device)[:, None, None] for each in (mean, std)
    )
    return (images.to(dtype) / 255 - centre) / scale


@torch.no_grad()
def predict(
    model: Fcn,
    image: torch.Tensor,
    config: SegmentationConfig,
    mean: Sequence[float],
    std: Sequence[float],
) -> torch.Tensor:
    """Return the class of each pixel of an image, of shape (H, W), uint8.

    Args:
        model: the segmenter, in eval mode.
        image: of shape (3, H, W), uint8, on its device.
        config: scale, and whether windows slide over the image.
        mean: mean of each channel in [0, 1].
        std: standard deviation of each channel in [0, 1].
    """
    dtype = next(model.parameters()).dtype
    seen = normalised(resized(image, fit(image, config.scale))[None], mean, std, dtype)
    logits = model(seen)[0] if config.test == "whole" else _slide(model, seen, config)
    return model.resize(logits, image.shape[-2:]).argmax(1)[0].byte()


def _slide(model: Fcn, image: torch.Tensor, config: SegmentationConfig) -> torch.Tensor:
    """Return the mean of the logits of all windows, of shape (1, K, H, W)."""
    height, width = image.shape[-2:]
    total, count = torch.zeros(()), torch.zeros((height, width), device=image.device)
    for top in _starts(height, config.crop, config.stride):
        for left in _starts(width, config.crop, config.stride):
            window = (slice(top, top + config.crop), slice(left, left + config.crop))
            logits = model(image[:, :, *window])[0]
            if not total.ndim:
                total = logits.new_zeros((1, logits.shape[1], height, width))
            total[:, :, *window] += logits
            count[window] += 1
    return total / count


def _starts(length: int, window: int, stride: int) -> Iterator[int]:
    """Yield where windows begin; the last one ends where the image does."""
    last = max(0, length - window)
    yield from range(0, last, stride)
    yield last
