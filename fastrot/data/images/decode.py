"""One image file to RGB pixels, strictly: right pixels or an error that says what the file is.

The format is decided by the first bytes and only JPEG, PNG, WebP and BMP are ever handed to a
decoder. The header is read, and the number of pixels capped, before anything is allocated.
Importing this module imports no torch.

Shapes: H, W of the image; after EXIF orientation where it is applied.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fastrot.data.images.file_type import looks_like
from fastrot.data.images.jpeg_header import JpegHeader, exif_orientation, read_jpeg_header
from fastrot.data.images.png_header import png_exif
from fastrot.errors import BadDataError
from fastrot.kernels.decode.op import JpegError, decode_jpeg

MAX_PIXELS = 64 * 2**20
"""Default cap on the pixels of one image (64 Mpx)."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""File name endings of images, in lower case."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_SNIFF_BYTES = 64


class DecodeError(BadDataError):
    """Bytes that are not a sound image; ``reason`` says what they look like."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_image(
    data: bytes | memoryview, *, apply_exif: bool, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode an image file to pixels of shape (H, W, 3), uint8, RGB, C-contiguous.

    Grey is repeated into three channels, CMYK converted, a palette looked up, transparency
    dropped, 16 bits cut to the upper 8.

    Args:
        data: the whole file.
        apply_exif: turn the pixels as the EXIF orientation says.
        max_pixels: refuse an image of more pixels, before decoding.

    Raises:
        DecodeError: not an image of a known format, too large, truncated, or the decoder
            refuses it or, for a JPEG, warns.
    """
    if (kind := _format(data[:_SNIFF_BYTES])) == "JPEG":
        header = _jpeg_header(io.BytesIO(data))
        _check_pixels(header.width, header.height, max_pixels)
        try:
            pixels = decode_jpeg(data, max_pixels=max_pixels)
        except JpegError as error:
            raise DecodeError(str(error)) from None
        turn = header.orientation
    else:
        file = io.BytesIO(data)
        image = _open(file, kind)
        _check_pixels(*image.size, max_pixels)
        turn = _stored_orientation(file, image)
        pixels = _pixels(image, kind)
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
    width, height, turn = _measure(source)
    _check_pixels(width, height, max_pixels)
    return (height, width) if apply_exif and turn >= 5 else (width, height)


def measure(
    source: bytes | memoryview | BinaryIO, *, max_pixels: int = MAX_PIXELS
) -> tuple[int, int, int]:
    """Width and height after EXIF orientation in pixels, and the orientation, 1 to 8.

    Raises:
        DecodeError: no readable header, or too large.
    """
    width, height, turn = _measure(source)
    _check_pixels(width, height, max_pixels)
    return (height, width, turn) if turn >= 5 else (width, height, turn)


def orientation(source: bytes | memoryview | BinaryIO) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none, or where the block is broken.

    Of a JPEG only an EXIF block ahead of the pixels counts. XMP does not, and neither do texts
    with a raw profile in a PNG: most decoders do not read them.

    Raises:
        DecodeError: no readable header.
    """
    return _measure(source)[2]


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn pixels of shape (h, w, 3) as stored so that the top is up: of shape (H, W, 3).

    Orientations as in CIPA DC-008: 2 mirrored, 3 half turn, 4 upside down mirrored,
    5 transposed, 6 to be turned clockwise, 7 transposed over the other diagonal,
    8 to be turned counter-clockwise.
    """
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _measure(source: bytes | memoryview | BinaryIO) -> tuple[int, int, int]:
    """Stored width, stored height, orientation."""
    file = io.BytesIO(source) if isinstance(source, bytes | memoryview) else source
    start = file.read(_SNIFF_BYTES)
    file.seek(0)
    if (kind := _format(start)) == "JPEG":
        header = _jpeg_header(file)
        return header.width, header.height, header.orientation
    image = _open(file, kind)
    return *image.size, _stored_orientation(file, image)


def _format(start: bytes | memoryview) -> str:
    """Pillow's name of the format that these first bytes announce."""
    start = bytes(start)
    if start.startswith(b"\xff\xd8"):
        return "JPEG"
    if start.startswith(PNG_SIGNATURE):
        return "PNG"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start.startswith(b"BM"):
        return "BMP"
    raise DecodeError(f"{looks_like(start)}, not a JPEG, PNG, WebP or BMP image")


def _jpeg_header(file: BinaryIO) -> JpegHeader:
    try:
        return read_jpeg_header(file)
    except ValueError as error:
        raise DecodeError(str(error)) from None


def _open(file: BinaryIO, kind: str) -> Image.Image:
    try:
        return Image.open(file, formats=(kind,))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise whatever they trip over
        raise DecodeError(_pillow_reason(kind, error)) from None


def _pixels(image: Image.Image, kind: str) -> NDArray[np.uint8]:
    try:
        if image.mode.startswith("I"):  # 16 bits of grey, which convert() would clip at 255
            grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        return np.array(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise DecodeError(_pillow_reason(kind, error)) from None


def _stored_orientation(file: BinaryIO, image: Image.Image) -> int:
    """EXIF orientation of an image that is no JPEG, opened from ``file`` and not decoded yet."""
    block = image.info.get("exif")
    if image.format == "PNG":  # of a block behind the pixels Pillow tells when it has decoded them
        position = file.tell()  # where Pillow goes on reading
        block = png_exif(file)
        file.seek(position)
    return exif_orientation(block.removeprefix(b"Exif\0\0")) if isinstance(block, bytes) else 1


def _pillow_reason(kind: str, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"damaged {kind}: its header cannot be read"
    message = " ".join(str(error).split()) or type(error).__name__
    return f"damaged {kind}: {message}"


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError(
            f"{width} x {height} pixels exceed the cap of {max_pixels} pixels an image"
        )
