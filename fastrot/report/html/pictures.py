"""Embedded images: arrays of pixels as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LARGEST = 160
_PNG_UP_TO = 64
_QUALITY = 88


def picture_uri(pixels: NDArray[np.uint8]) -> str:
    """Return an image of shape (H, W, 3) or (H, W, 4) as a data URI.

    Images without transparency are reduced to at most 160 px. Images of up to 64 px and those
    with transparency are PNG, all others JPEG.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if pixels.shape[2] == 3 and max(image.size) > _LARGEST:
        image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    if pixels.shape[2] == 4 or max(image.size) <= _PNG_UP_TO:
        return _encoded(image, "png", optimize=True)
    return _encoded(image, "jpeg", quality=_QUALITY)


def _encoded(image: Image.Image, kind: str, **options: int | bool) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
