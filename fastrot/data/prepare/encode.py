"""Encodes a source image to the payload that a ``.beton`` stores. Does not import torch."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastrot.data.beton.format import MAX_PIXELS as MAX_STORED_PIXELS
from fastrot.data.beton.manifest import Scalar
from fastrot.data.beton.reader import check_jpeg
from fastrot.data.beton.values import SoundJpeg
from fastrot.data.images.decode import MAX_PIXELS, DecodeError, decode_image
from fastrot.data.images.jpeg_header import exif_orientation
from fastrot.kernels.decode.header import JpegError
from fastrot.kernels.decode.markers import JpegWalk, read_jpeg, walk_jpeg

DEFAULT_QUALITY = 90
_BLOCK = 16  # pixels; chroma has half the resolution
_LEAST_BLOCKS = 12  # per row; in smaller images there is little to skip
SHRINK_FILTER = Image.Resampling.HAMMING
"""As fast as the loaders' triangle filter, and sharper; Lanczos takes twice as long."""

_MAX_JPEG_SIDE = 65500  # libjpeg's own limit
_MAX_SCANS = 100  # the decoder's limit


@dataclass(frozen=True)
class Encoding:
    """How images are stored.

    Attributes:
        copy: keep the bytes of every JPEG that FFCV can read unchanged (three components of 8 bits,
            upright, nothing after its end), and re-encode the others.
        max_side: shrink images until the longest side is at most this many pixels; None: never.
        quality: quality of re-encoded JPEGs, 1 to 100; None: 90, and pixels without a lossy
            encoding (CIFAR's binary version) are stored raw.
        max_pixels: refuse larger source images; None: as in ``decode_image``.
    """

    copy: bool = False
    max_side: int | None = None
    quality: int | None = None
    max_pixels: int | None = None

    def settings(self) -> dict[str, Scalar]:
        """Return the settings for the manifest; ``max_pixels`` only if it is set."""
        settings: dict[str, Scalar] = asdict(self)
        if self.max_pixels is None:
            del settings["max_pixels"]
        return settings


@dataclass(frozen=True)
class Payload:
    """One encoded image.

    Attributes:
        image: a JPEG that ``check_jpeg`` accepts, or pixels of shape (H, W, 3), uint8, to be
            stored raw.
        reencoded: with ``copy``, why the original bytes could not be kept; otherwise None.
    """

    image: SoundJpeg | NDArray[np.uint8]
    reencoded: str | None = None

    @property
    def nbytes(self) -> int:
        """Return the number of bytes that the image takes in the file."""
        image = self.image
        return image.nbytes if isinstance(image, np.ndarray) else len(image.data)


def encode_image(source: bytes | NDArray[np.uint8], encoding: Encoding) -> Payload:
    """Validate a source image and encode it.

    An image that is re-encoded is decoded strictly. If the bytes are kept, only the markers are
    checked, from the first to the end of the image: damage in the coded pixels is not noticed.

    Args:
        source: an image file, or pixels of shape (H, W, 3), uint8.
        encoding: how to store it.

    Raises:
        DecodeError: the source is not a valid image, or is too large for a JPEG.
    """
    if not isinstance(source, bytes):
        if encoding.quality is None:
            return Payload(np.asarray(_shrunk(source, encoding.max_side)))
        return Payload(_jpeg(_shrunk(source, encoding.max_side), encoding.quality))
    reason = None
    if encoding.copy:
        reason = why_not_kept(source, encoding.max_pixels)
        if reason is None:
            return Payload(SoundJpeg(source, *check_jpeg(source)))
    pixels = decode_image(
        source, apply_exif=True, max_pixels=encoding.max_pixels, max_side=encoding.max_side
    )
    quality = encoding.quality or DEFAULT_QUALITY
    return Payload(_jpeg(_shrunk(pixels, encoding.max_side), quality), reason)


def keep_file(path: str, size: int, max_pixels: int | None = None) -> Payload | None:
    """Return the payload of a JPEG file whose bytes can be kept; None if it needs a closer look.

    Args:
        path: the file.
        size: its size in bytes when it was listed.
        max_pixels: as in ``Encoding``.
    """
    try:
        data, jpeg = read_jpeg(path, size)
    except (OSError, JpegError):
        return None
    if _objection(data, jpeg, max_pixels) is not None:
        return None
    return Payload(SoundJpeg(data, jpeg.frame.height, jpeg.frame.width))


def why_not_kept(data: bytes, max_pixels: int | None = None) -> str | None:
    """Return why an image's bytes cannot be stored unchanged in a ``.beton``; None if they can.

    Damage and excessive size are among the reasons; the strict decoder then reports them.
    """
    if not data.startswith(b"\xff\xd8"):
        return "not a JPEG"
    try:
        return _objection(data, walk_jpeg(data), max_pixels)
    except JpegError:
        return "unusual markers"


def _objection(data: bytes, jpeg: JpegWalk, max_pixels: int | None) -> str | None:
    frame = jpeg.frame
    cap = min(max_pixels or MAX_PIXELS, MAX_STORED_PIXELS)
    if frame.components != 3:
        return {1: "grey", 4: "CMYK"}.get(frame.components, f"{frame.components} components")
    if frame.precision != 8:
        return f"{frame.precision} bits"
    if frame.process:
        return frame.process
    if exif_orientation(jpeg.exif) != 1:
        return "EXIF orientation"
    if jpeg.end is None:
        return "no end of the image"
    if jpeg.end != len(data):
        return "bytes after the end of the image"
    if jpeg.scans > _MAX_SCANS or frame.width * frame.height > cap:
        return "more scans or pixels than the decoder takes"
    return None


def _shrunk(pixels: NDArray[np.uint8], max_side: int | None) -> NDArray[np.uint8] | Image.Image:
    """Shrink with antialiasing, never enlarge; the short side is rounded, and at least 1."""
    height, width, _ = pixels.shape
    longest = max(height, width)
    if max_side is None or longest <= max_side:
        return pixels
    size = max(1, round(width * max_side / longest)), max(1, round(height * max_side / longest))
    return Image.fromarray(pixels).resize(size, SHRINK_FILTER)


def _blocks_a_restart(width: int) -> int:
    """Return the number of blocks between restart markers, a divisor of those per row; 0 for none.

    A decoder that needs part of an image can start at a marker and skip what surrounds the part:
    the native loader's random crops of 500 px photos take a tenth less time, and files are 2 %
    larger. Every JPEG decoder supports these markers.
    """
    across = -(-width // _BLOCK)
    if across < _LEAST_BLOCKS:
        return 0
    return next((blocks for blocks in (2, 3, 4, 5, 6, 7) if across % blocks == 0), across)


def _jpeg(image: NDArray[np.uint8] | Image.Image, quality: int) -> SoundJpeg:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    if max(image.size) > _MAX_JPEG_SIDE:
        raise DecodeError(
            f"a side of {max(image.size)} pixels exceeds JPEG's limit of {_MAX_JPEG_SIDE}; "
            "give --max-side"
        )
    if (pixels := image.width * image.height) > MAX_STORED_PIXELS:
        raise DecodeError(
            f"its {pixels} pixels exceed the {MAX_STORED_PIXELS} that a .beton holds per image; "
            "give --max-side"
        )
    file = io.BytesIO()
    blocks = _blocks_a_restart(image.width)
    image.save(file, "JPEG", quality=quality, restart_marker_blocks=blocks)
    return SoundJpeg(file.getvalue(), image.height, image.width)
