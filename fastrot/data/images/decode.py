"""Strict decoding of image files to RGB: correct pixels, or an error that says what the file is.

The first bytes decide the format. Only JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF and PNM (PBM, PGM,
PPM) files reach a decoder, and that decoder reads no other format. The header is read, and the
number of pixels capped, before anything is allocated. If a file has several pictures (an animation
or pages), the first one is decoded. Importing this module does not import torch.

Shapes: an image has height H and width W, after EXIF orientation where that is applied.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastrot.data.images.file_type import PNM_BLANKS, looks_like
from fastrot.data.images.jpeg_header import read_jpeg_header
from fastrot.data.images.pillow_image import ImageError, PillowImage, upright
from fastrot.errors import BadDataError
from fastrot.kernels.decode.header import JpegHeader
from fastrot.kernels.decode.op import JpegError, decode_jpeg

MAX_PIXELS = 64 * 2**20
"""Default limit on the pixels of one image (64 Mpx)."""

MAX_SHRUNK_PIXELS = 2**28
"""The same limit for a JPEG that is shrunk during decoding (268 Mpx): if it is progressive, all of
its coefficients are in memory, at 3 to 6 bytes per pixel."""

_GOOD_MARGIN, _LEAST_MARGIN = 4, 2

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .avif".split()
)
"""File name endings of images, in lower case."""

JPEG_SIGNATURE = b"\xff\xd8"

_SIGNATURES = (
    ("JPEG", JPEG_SIGNATURE),
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("BMP", b"BM"),
    ("GIF", b"GIF87a"),
    ("GIF", b"GIF89a"),
    *(("TIFF", start) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *(("PPM", b"P%d" % number + blank) for number in range(1, 7) for blank in PNM_BLANKS),
)
_SNIFF_BYTES = 512


class DecodeError(BadDataError):
    """Raised for bytes that are not a valid image; ``reason`` says what they look like."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_image(
    data: bytes | memoryview,
    *,
    apply_exif: bool,
    max_pixels: int | None = None,
    max_side: int | None = None,
) -> NDArray[np.uint8]:
    """Decode an image file to pixels of shape (H, W, 3), uint8, RGB, C-contiguous.

    Grey is repeated in three channels, CMYK is converted, palettes are looked up, transparency is
    dropped, and 16-bit samples keep their upper 8 bits.

    Args:
        data: the whole file.
        apply_exif: rotate or mirror the pixels as the EXIF orientation requires.
        max_pixels: refuse larger images before decoding; None: the limit is ``MAX_PIXELS``, or
            ``MAX_SHRUNK_PIXELS`` if the image is shrunk during decoding.
        max_side: the length to which the caller will shrink the longest side. A JPEG of more than
            ``MAX_PIXELS`` is then returned at a half, a quarter or an eighth of its size.

    Raises:
        DecodeError: the format is unknown, or the image is too large, truncated or refused by the
            decoder (for a JPEG, a warning is enough).
    """
    if (kind := _format(data[:_SNIFF_BYTES])) == "JPEG":
        header, turn = _jpeg_header(io.BytesIO(data))
        pixels = _jpeg_pixels(data, header, max_pixels, max_side)
    else:
        cap = MAX_PIXELS if max_pixels is None else max_pixels
        image = _open(io.BytesIO(data), kind, cap)
        try:
            pixels = image.pixels(cap)
        except ImageError as error:
            raise DecodeError(str(error)) from None
        turn = image.orientation
    return upright(pixels, turn) if apply_exif else pixels


def measure(
    source: bytes | memoryview | BinaryIO, *, max_pixels: int = MAX_PIXELS
) -> tuple[int, int, int]:
    """Read width, height and EXIF orientation from the header alone.

    In a JPEG, only an EXIF block before the pixels counts. XMP and the raw-profile texts of a PNG
    are ignored, because most decoders do not read them.

    Args:
        source: a file's bytes, or the file opened for reading at its start.
        max_pixels: refuse larger images.

    Returns:
        The width and height in pixels after EXIF orientation, and the orientation, 1 to 8; 1 if
        there is none or its block is broken.

    Raises:
        DecodeError: the header cannot be read, or the image is too large.
    """
    file = io.BytesIO(source) if isinstance(source, bytes | memoryview) else source
    start = file.read(_SNIFF_BYTES)
    file.seek(0)
    if (kind := _format(start)) == "JPEG":
        header, turn = _jpeg_header(file)
        width, height = header.width, header.height
        _check_pixels(width, height, max_pixels, is_jpeg=True)
    else:
        image = _open(file, kind, max_pixels)
        width, height, turn = image.width, image.height, image.orientation
    return (height, width, turn) if turn >= 5 else (width, height, turn)


def _jpeg_pixels(
    data: bytes | memoryview, header: JpegHeader, max_pixels: int | None, max_side: int | None
) -> NDArray[np.uint8]:
    size = header.width, header.height
    denominator = 1 if max_side is None else _denominator(*size, max_side)
    shrunk = denominator > 1
    cap = max_pixels or (MAX_SHRUNK_PIXELS if shrunk else MAX_PIXELS)
    _check_pixels(*size, cap, is_jpeg=not shrunk)
    try:
        return decode_jpeg(data, max_pixels=cap, denominator=denominator)
    except JpegError as error:
        if shrunk and max_pixels is not None:  # libjpeg cannot shrink unusual chroma subsampling
            return _jpeg_pixels(data, header, max_pixels, None)
        raise DecodeError(str(error)) from None


def _denominator(width: int, height: int, max_side: int) -> int:
    """Return the factor to shrink a JPEG by while decoding, given its final ``max_side``.

    If four times the final pixels per side are left for the filter, the result differs by 0.8 to
    1.4 levels on average from that of a full decode; with twice, by 1.6 to 2.9. JPEG of quality 90
    itself costs 3.5 to 5 levels (60 photos of 500 to 1,600 px; larger ones are softer). Four times
    is therefore the default, and less is left only where that would exceed the pixel limit.
    """
    if width * height <= MAX_PIXELS:
        return 1
    for margin in (_GOOD_MARGIN, _LEAST_MARGIN):
        for denominator in (8, 4, 2):
            left = max(width, height) / denominator
            if left >= margin * max_side and width * height <= MAX_PIXELS * denominator**2:
                return denominator
    return 1


def _format(start: bytes | memoryview) -> str:
    """Return Pillow's name for the format that these first bytes announce."""
    start = bytes(start)
    for kind, signature in _SIGNATURES:
        if start.startswith(signature):
            return kind
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    what = looks_like(start)
    if what == "an AVIF image":
        return "AVIF"
    if what.endswith("image"):
        raise DecodeError(f"{what}; convert it to JPEG")
    raise DecodeError(f"{what}, not a JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or PNM image")


def _jpeg_header(file: BinaryIO) -> tuple[JpegHeader, int]:
    try:
        return read_jpeg_header(file)
    except ValueError as error:
        raise DecodeError(str(error)) from None


def _open(file: BinaryIO, kind: str, max_pixels: int) -> PillowImage:
    try:
        image = PillowImage(file, kind)
    except ImageError as error:
        raise DecodeError(str(error)) from None
    _check_pixels(image.width, image.height, max_pixels)
    if image.memory > max_pixels:
        raise DecodeError(f"damaged {kind}: blocks of {image.memory} pixels exceed the image")
    return image


def _check_pixels(width: int, height: int, max_pixels: int, *, is_jpeg: bool = False) -> None:
    if (pixels := width * height) > max_pixels:
        way_out = f"--max-pixels {pixels}"
        if pixels > MAX_SHRUNK_PIXELS:  # more than a .beton holds
            way_out += " --max-side 500"
        elif is_jpeg:
            way_out = f"--max-side 500, which shrinks it, or with {way_out}"
        raise DecodeError(
            f"{width} x {height} pixels exceed the cap of {max_pixels} pixels per image; fastrot "
            f"prepare takes it with {way_out}"
        )
