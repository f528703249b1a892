"""One source image to the payload that a ``.beton`` stores for it. Imports no torch."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastrot.data.images import DecodeError, decode_image
from fastrot.data.jpeg_header import read_jpeg_header

DEFAULT_QUALITY = 90
_MAX_JPEG_SIDE = 65500  # libjpeg's own limit


@dataclass(frozen=True)
class Encoding:
    """How images are stored.

    Attributes:
        copy: keep the bytes of every JPEG that FFCV can read as it is (three components of
            8 bits, upright, nothing after its end), re-encode the others.
        max_side: shrink an image until its longest side is at most this, in pixels; None: never.
        quality: of a re-encoded JPEG, 1 to 100; None: 90, and pixels that come without a lossy
            encoding (CIFAR's binary version) are stored raw.
    """

    copy: bool = False
    max_side: int | None = None
    quality: int | None = None


@dataclass(frozen=True)
class Payload:
    """One encoded image.

    Attributes:
        data: a JPEG, or height * width * 3 bytes of RGB rows.
        mode: which of the two.
        width: pixels.
        height: pixels.
        reencoded: with ``copy``, why the original bytes could not be kept; else None.
    """

    data: bytes
    mode: Literal["jpg", "raw"]
    width: int
    height: int
    reencoded: str | None = None


def encode_image(source: bytes | NDArray[np.uint8], encoding: Encoding) -> Payload:
    """Validate a source image by decoding it strictly, and encode it.

    Args:
        source: an image file, or pixels of shape (H, W, 3).
        encoding: how to store it.

    Raises:
        DecodeError: the source is not a sound image, or too large for a JPEG.
    """
    if not isinstance(source, bytes):
        return _encode_pixels(source, encoding)
    pixels = decode_image(source, apply_exif=True)
    if not encoding.copy:
        return _encode_jpeg(_shrink(pixels, encoding.max_side), encoding.quality)
    reason = why_not_kept(source)
    if reason is not None:
        return _encode_jpeg(pixels, None, reencoded=reason)
    height, width, _ = pixels.shape
    return Payload(source, "jpg", width, height)


def why_not_kept(data: bytes) -> str | None:
    """Why the bytes of a sound image cannot stand in a ``.beton`` as they are; None: they can."""
    if not data.startswith(b"\xff\xd8"):
        return "not a JPEG"
    header = read_jpeg_header(io.BytesIO(data))
    if header.components != 3:
        return {1: "grey", 4: "CMYK"}.get(header.components, f"{header.components} components")
    if header.bits != 8:
        return f"{header.bits} bits"
    if header.orientation != 1:
        return "EXIF orientation"
    if not data.endswith(b"\xff\xd9"):
        return "bytes after the end of the image"
    return None


def _encode_pixels(pixels: NDArray[np.uint8], encoding: Encoding) -> Payload:
    pixels = _shrink(pixels, encoding.max_side)
    if encoding.quality is not None:
        return _encode_jpeg(pixels, encoding.quality)
    height, width, _ = pixels.shape
    return Payload(pixels.tobytes(), "raw", width, height)


def _shrink(pixels: NDArray[np.uint8], max_side: int | None) -> NDArray[np.uint8]:
    """Antialiased; never enlarges. The short side is rounded, and at least 1."""
    height, width, _ = pixels.shape
    longest = max(height, width)
    if max_side is None or longest <= max_side:
        return pixels
    size = tuple(max(1, round(side * max_side / longest)) for side in (width, height))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _encode_jpeg(
    pixels: NDArray[np.uint8], quality: int | None, reencoded: str | None = None
) -> Payload:
    height, width, _ = pixels.shape
    if max(height, width) > _MAX_JPEG_SIDE:
        raise DecodeError(
            f"a side of {max(height, width)} pixels exceeds JPEG's limit of {_MAX_JPEG_SIDE}"
        )
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality or DEFAULT_QUALITY)
    return Payload(file.getvalue(), "jpg", width, height, reencoded)
