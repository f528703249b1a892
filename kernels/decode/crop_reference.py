"""The reference for crops: torchvision's antialiased bilinear resize of a box."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2.functional import InterpolationMode, resize


def cut(pixels: NDArray[np.uint8], box: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return the part of an image (H, W, 3) inside a box; zeros where the box leaves the image."""
    left, top, width, height = (int(value) for value in box)
    image_h, image_w = pixels.shape[:2]
    x0, y0 = min(max(left, 0), image_w), min(max(top, 0), image_h)
    x1, y1 = max(min(left + width, image_w), x0), max(min(top + height, image_h), y0)
    inside = pixels[y0:y1, x0:x1]
    if inside.shape[:2] == (height, width):
        return inside
    padded = np.zeros((height, width, 3), dtype=np.uint8)
    if inside.size:
        padded[y0 - top : y1 - top, x0 - left : x1 - left] = inside
    return padded


def crop_and_resize(
    pixels: NDArray[np.uint8], box: NDArray[np.int32], size: int
) -> NDArray[np.uint8]:
    """Return a crop (S, S, 3), uint8: torchvision's antialiased bilinear resize of a box."""
    part = cut(pixels, box)
    if part.shape[:2] == (size, size):
        return part
    chw = torch.from_numpy(np.array(part)).permute(2, 0, 1)
    resized = resize(chw, [size, size], InterpolationMode.BILINEAR, antialias=True)
    hwc: NDArray[np.uint8] = resized.permute(1, 2, 0).numpy()
    return hwc
