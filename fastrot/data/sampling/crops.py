"""Crop boxes and flips as pure functions of (seed, epoch, sample id).

``draw.py`` calls them for all loaders, so any two loaders give the same crop of the same sample.
A box is (left, top, width, height) in pixels of the image after EXIF orientation; it is then
resized to ``size`` x ``size``. The box of a padded crop may extend beyond the image; pixels
outside are zero (black).

Shapes: N ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastrot.data.sampling.philox import U32, Stream, below, draw, uniform

CropKind = Literal["random_resized", "padded", "center_random", "center", "whole"]
Boxes = NDArray[np.int32]

_ATTEMPTS = 10


class _Images(NamedTuple):
    ids: NDArray[np.int64]
    widths: NDArray[np.int64]
    heights: NDArray[np.int64]


@dataclass(frozen=True)
class Crop:
    """How a crop is drawn from an image.

    Args:
        kind: ``random_resized``: torchvision's RandomResizedCrop (random area and aspect ratio,
            ten attempts, then the largest centred box of an allowed ratio). ``padded``: the
            largest square, moved by up to ``padding`` output pixels beyond the border (RotNet's
            CIFAR recipe: pad 4, crop 32). ``center``: torchvision's Resize(resize) and
            CenterCrop(size) as one box, its sides rounded to whole pixels. ``center_random``:
            Resize(resize), CenterCrop(resize) and RandomCrop(size), likewise. ``whole``: the
            whole image, stretched to a square.
        size: S, side of the output in pixels.
        scale: smallest and largest fraction of the image's area (random_resized).
        ratio: smallest and largest width / height (random_resized).
        padding: padding in output pixels (padded).
        resize: length of the short side before the centre crop, in pixels (center,
            center_random).
        flip: probability of a horizontal flip, in [0, 1].
    """

    kind: CropKind
    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: int = 4
    resize: int = 256
    flip: float = 0.0

    def boxes(
        self, seed: int, epoch: int, ids: ArrayLike, widths: ArrayLike, heights: ArrayLike
    ) -> Boxes:
        """Return boxes of shape (N, 4), int32: left, top, width, height.

        Args:
            seed: seed of the run.
            epoch: index of the epoch.
            ids: sample ids of shape (N,).
            widths: image widths after EXIF orientation of shape (N,), pixels.
            heights: image heights after EXIF orientation of shape (N,), pixels.
        """
        images = _Images(*(np.asarray(each, dtype=np.int64) for each in (ids, widths, heights)))
        if self.kind == "random_resized":
            return self._random_resized(seed, epoch, images)
        if self.kind == "padded":
            return self._padded(seed, epoch, images)
        if self.kind in ("center", "center_random"):
            return self._centred(seed, epoch, images)
        zero = np.zeros_like(images.widths)
        return _stack(zero, zero, images.widths, images.heights)

    def flips(self, seed: int, epoch: int, ids: ArrayLike) -> NDArray[np.bool_]:
        """Return whether to mirror each image left to right, of shape (N,)."""
        bits, _, _, _ = draw(seed, epoch, ids, Stream.FLIP)
        return uniform(bits) < self.flip

    @property
    def leaves_image(self) -> bool:
        """Return whether a box may extend beyond the image."""
        return self.kind == "padded" and self.padding > 0

    def _random_resized(self, seed: int, epoch: int, images: _Images) -> Boxes:
        ids, w, h = images
        boxes = self._largest_centred(w, h)
        open_rows = np.arange(len(ids))
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(_ATTEMPTS):
            if not len(open_rows):
                break
            bits = draw(seed, epoch, ids[open_rows], Stream.CROP, attempt)
            image_w, image_h = w[open_rows], h[open_rows]
            share = self.scale[0] + (self.scale[1] - self.scale[0]) * uniform(bits[0])
            area = image_w * image_h * share
            ratio = np.exp(log_low + (log_high - log_low) * uniform(bits[1]))
            box_w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
            box_h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
            fits = (box_w > 0) & (box_w <= image_w) & (box_h > 0) & (box_h <= image_h)
            box_w, box_h, rows = box_w[fits], box_h[fits], open_rows[fits]
            left = below(bits[2][fits], image_w[fits] - box_w + 1)
            top = below(bits[3][fits], image_h[fits] - box_h + 1)
            boxes[rows] = _stack(left, top, box_w, box_h)
            open_rows = open_rows[~fits]
        return boxes

    def _largest_centred(self, w: NDArray[np.int64], h: NDArray[np.int64]) -> Boxes:
        box_w = np.minimum(w, np.rint(h * self.ratio[1]).astype(np.int64))
        box_h = np.minimum(h, np.rint(w / self.ratio[0]).astype(np.int64))
        return _stack((w - box_w) // 2, (h - box_h) // 2, box_w, box_h)

    def _padded(self, seed: int, epoch: int, images: _Images) -> Boxes:
        ids, w, h = images
        side = np.minimum(w, h)
        margin = np.rint(self.padding * side / self.size).astype(np.int64)
        bits = draw(seed, epoch, ids, Stream.CROP)
        left = below(bits[0], w - side + 2 * margin + 1) - margin
        top = below(bits[1], h - side + 2 * margin + 1) - margin
        return _stack(left, top, side, side)

    def _centred(self, seed: int, epoch: int, images: _Images) -> Boxes:
        ids, w, h = images
        side, short = min(self.size, self.resize), np.minimum(w, h)
        outer, words = side, (np.zeros(len(ids), np.uint32),) * 2
        if self.kind == "center_random":
            outer, words = self.resize, draw(seed, epoch, ids, Stream.CROP)[2:]

        def along(length: NDArray[np.int64], word: U32) -> tuple[NDArray[np.int64], ...]:
            # torchvision rounds the long side down, and the crop's corner to whole pixels of the
            # resized image; boxes that ignore this are off by up to one output pixel.
            shrunk = self.resize * length // short
            start = np.rint((shrunk - outer) / 2) + below(word, outer - side + 1)
            first = np.minimum(np.rint(start * length / shrunk).astype(np.int64), length - 1)
            end = np.rint((start + side) * length / shrunk).astype(np.int64)
            return first, np.maximum(end - first, 1)

        (left, box_w), (top, box_h) = along(w, words[0]), along(h, words[1])
        return _stack(left, top, box_w, box_h)


def replacement(seed: int, sample: int, attempt: int, num_samples: int) -> int:
    """Return the id that replaces a bad sample: the same in every epoch and on every rank."""
    bits, _, _, _ = draw(seed, 0, np.array([sample]), Stream.REPLACEMENT, attempt)
    return int(below(bits, num_samples)[0])


def _stack(*columns: NDArray[np.int64]) -> Boxes:
    return np.stack(columns, axis=1).astype(np.int32)
