"""One image file to RGB pixels, strictly: right pixels or an error that says what the file is.

The format is decided by the first bytes, and only JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF and PNM
(PBM, PGM, PPM) are ever handed to a decoder, which reads no other format. The header is read, and
the number of pixels capped, before anything is allocated. Of a file with several pictures (an
animation, pages) the first one counts. Importing this module imports no torch.

Shapes: H, W of the image; after EXIF orientation where it is applied.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastrot.data.images.file_type import PNM_BLANKS, looks_like
from fastrot.data.images.jpeg_header import JpegHeader, read_jpeg_header
from fastrot.data.images.pillow_image import ImageError, PillowImage, upright
from fastrot.errors import BadDataError
from fastrot.kernels.decode.op import JpegError, decode_jpeg

MAX_PIXELS = 64 * 2**20
"""Default cap on the pixels of one image (64 Mpx)."""

MAX_SHRUNK_PIXELS = 2**28
"""The same of a JPEG that is shrunk while it is decoded (268 Mpx): if it is progressive, its
coefficients are in memory, 3 to 6 bytes a pixel."""

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
    """Bytes that are not a sound image; ``reason`` says what they look like."""

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

    Grey is repeated into three channels, CMYK converted, a palette looked up, transparency
    dropped, 16 bits cut to the upper 8.

    Args:
        data: the whole file.
        apply_exif: turn the pixels as the EXIF orientation says.
        max_pixels: refuse an image of more pixels, before decoding; None: of more than
            ``MAX_PIXELS``, or ``MAX_SHRUNK_PIXELS`` if it is shrunk.
        max_side: the caller is going to shrink the longest side to this. A JPEG of more than
            ``MAX_PIXELS`` then comes at a half, a quarter or an eighth of its size.

    Raises:
        DecodeError: not an image of a known format, too large, truncated, or the decoder
            refuses it or, for a JPEG, warns.
    """
    if (kind := _format(data[:_SNIFF_BYTES])) == "JPEG":
        header = _jpeg_header(io.BytesIO(data))
        pixels = _jpeg_pixels(data, header, max_pixels, max_side)
        turn = header.orientation
    else:
        cap = MAX_PIXELS if max_pixels is None else max_pixels
        image = _open(io.BytesIO(data), kind, cap)
        try:
            pixels = image.pixels(cap)
        except ImageError as error:
            raise DecodeError(str(error)) from None
        turn = image.orientation
    return upright(pixels, turn) if apply_exif else pixels


def image_size(
    source: bytes | memoryview | BinaryIO, *, apply_exif: bool, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Width and height in pixels, from the header alone.

    Args:
        source: a file's bytes, or the file opened for reading at its start.
        apply_exif: exchange the two where the EXIF orientation lies on its side.
        max_pixels: refuse an image of more pixels.

    Raises:
        DecodeError: no readable header, or too large.
    """
    width, height, turn = _measure(source, max_pixels)
    return (height, width) if apply_exif and turn >= 5 else (width, height)


def measure(
    source: bytes | memoryview | BinaryIO, *, max_pixels: int = MAX_PIXELS
) -> tuple[int, int, int]:
    """Width and height after EXIF orientation in pixels, and the orientation, 1 to 8.

    Raises:
        DecodeError: no readable header, or too large.
    """
    width, height, turn = _measure(source, max_pixels)
    return (height, width, turn) if turn >= 5 else (width, height, turn)


def orientation(source: bytes | memoryview | BinaryIO) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none, or where the block is broken.

    Of a JPEG only an EXIF block ahead of the pixels counts. XMP does not, and neither do texts
    with a raw profile in a PNG: most decoders do not read them.

    Raises:
        DecodeError: no readable header.
    """
    return _measure(source, MAX_PIXELS)[2]


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
        if shrunk and max_pixels is not None:  # libjpeg shrinks none with an unusual sampling
            return _jpeg_pixels(data, header, max_pixels, None)
        raise DecodeError(str(error)) from None


def _denominator(width: int, height: int, max_side: int) -> int:
    """By which a JPEG is shrunk while it is decoded, where its longest side becomes ``max_side``.

    With four times as many pixels a side left for the filter, the result is 0.8 to 1.4 levels on
    average from that of a whole decode, and with twice as many 1.6 to 2.9, where JPEG of quality
    90 itself takes 3.5 to 5 (60 photos of 500 to 1,600 px; large ones are softer). So four times
    it is, and fewer only where it would be too many pixels.
    """
    if width * height <= MAX_PIXELS:
        return 1
    for margin in (_GOOD_MARGIN, _LEAST_MARGIN):
        for denominator in (8, 4, 2):
            left = max(width, height) / denominator
            if left >= margin * max_side and width * height <= MAX_PIXELS * denominator**2:
                return denominator
    return 1


def _measure(source: bytes | memoryview | BinaryIO, max_pixels: int) -> tuple[int, int, int]:
    """Stored width, stored height, orientation."""
    file = io.BytesIO(source) if isinstance(source, bytes | memoryview) else source
    start = file.read(_SNIFF_BYTES)
    file.seek(0)
    if (kind := _format(start)) == "JPEG":
        header = _jpeg_header(file)
        _check_pixels(header.width, header.height, max_pixels, is_jpeg=True)
        return header.width, header.height, header.orientation
    image = _open(file, kind, max_pixels)
    return image.width, image.height, image.orientation


def _format(start: bytes | memoryview) -> str:
    """Pillow's name of the format that these first bytes announce."""
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


def _jpeg_header(file: BinaryIO) -> JpegHeader:
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
            f"{width} x {height} pixels exceed the cap of {max_pixels} pixels an image; fastrot "
            f"prepare takes it with {way_out}"
        )
