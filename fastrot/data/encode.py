"""One source image to the payload that a ``.beton`` stores for it. Imports no torch."""

from __future__ import annotations

import io
from dataclasses import dataclass

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
        image: a JPEG, or pixels of shape (H, W, 3), uint8, to be stored raw.
        reencoded: with ``copy``, why the original bytes could not be kept; else None.
    """

    image: bytes | NDArray[np.uint8]
    reencoded: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in the file."""
        return len(self.image) if isinstance(self.image, bytes) else self.image.nbytes


def encode_image(source: bytes | NDArray[np.uint8], encoding: Encoding) -> Payload:
    """Validate a source image by decoding it strictly, and encode it.

    Args:
        source: an image file, or pixels of shape (H, W, 3).
        encoding: how to store it.

    Raises:
        DecodeError: the source is not a sound image, or too large for a JPEG.
    """
    if not isinstance(source, bytes):
        pixels = _shrink(source, encoding.max_side)
        return Payload(pixels if encoding.quality is None else _jpeg(pixels, encoding.quality))
    pixels = decode_image(source, apply_exif=True)
    if not encoding.copy:
        quality = encoding.quality or DEFAULT_QUALITY
        return Payload(_jpeg(_shrink(pixels, encoding.max_side), quality))
    reason = why_not_kept(source)
    return Payload(source if reason is None else _jpeg(pixels, DEFAULT_QUALITY), reason)


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


def _shrink(pixels: NDArray[np.uint8], max_side: int | None) -> NDArray[np.uint8]:
    """Antialiased; never enlarges. The short side is rounded, and at least 1."""
    height, width, _ = pixels.shape
    longest = max(height, width)
    if max_side is None or longest <= max_side:
        return pixels
    size = max(1, round(width * max_side / longest)), max(1, round(height * max_side / longest))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    longest = max(pixels.shape)
    if longest > _MAX_JPEG_SIDE:
        raise DecodeError(f"a side of {longest} pixels exceeds JPEG's limit of {_MAX_JPEG_SIDE}")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()
