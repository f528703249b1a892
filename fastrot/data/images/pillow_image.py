"""Decodes images other than JPEG with Pillow, restricted to the format their bytes announce.

16-bit samples keep their upper 8 bits and palettes are looked up. Transparency is dropped, which
shows what is beneath it; where a GIF's picture does not cover its canvas, that is the transparent
colour or else the first one. PNM samples are scaled by the header's maximum value and rounded.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from fastrot.data.images.jpeg_header import exif_orientation
from fastrot.data.images.libtiff_errors import libtiff_errors
from fastrot.data.images.png_header import png_exif
from fastrot.data.images.tiff_header import TiffError, TiffHeader, read_tiff_header
from fastrot.kernels.decode.op import JpegError, decode_jpeg

# They concern tags that no decoder needs; those it needs have been read before.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

_NEEDS = {"AVIF": "avif", "WEBP": "webp"}
"""Formats that Pillow may have been built without."""


class ImageError(ValueError):
    """Raised if the bytes are not a valid image of their format; the message says why."""


class PillowImage:
    """An image whose header has been read.

    Args:
        file: file opened for reading; it is read from its start.
        kind: Pillow's name for the format.

    Attributes:
        width: pixels as stored, before orientation.
        height: pixels as stored, before orientation.
        orientation: EXIF orientation, 1 to 8; a TIFF has its own tag, an AVIF ``irot`` and
            ``imir``, where EXIF does not count.
        memory: the largest number of pixels that the decoder holds in memory at once.

    Raises:
        ImageError: the header cannot be read.
    """

    def __init__(self, file: BinaryIO, kind: str) -> None:
        self._file, self._kind = file, kind
        self._tiff: TiffHeader | None = None
        if kind == "TIFF":
            try:
                self._tiff = read_tiff_header(file)
            except TiffError as error:
                raise ImageError(str(error)) from None
        file.seek(0)
        self._image = self._opened()
        if self._tiff is not None:
            self.width, self.height = self._tiff.width, self._tiff.height
            self.orientation = self._tiff.orientation
            self.memory = max(self.width * self.height, self._tiff.block)
        else:
            self.width, self.height = self._image.size
            self.orientation = self._stored_orientation()
            self.memory = self.width * self.height

    def pixels(self, max_pixels: int) -> NDArray[np.uint8]:
        """Decode to pixels of shape (H, W, 3), as stored.

        Args:
            max_pixels: the limit that ``memory`` was compared with.

        Raises:
            ImageError: the image is damaged, cut short, or of a kind that Pillow does not support.
        """
        if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow has its own limit
        listening: AbstractContextManager[list[str]] = nullcontext([])
        if self._tiff is not None:
            self._check_jpegs(self._tiff)
            listening = libtiff_errors()
        with listening as complaints:
            try:
                pixels = self._rgb()
            except MemoryError:
                raise
            except Exception as error:  # Pillow's decoders raise errors of any type
                raise ImageError(self._reason(error)) from None
        if complaints:
            raise ImageError(f"damaged TIFF: {complaints[0]} reports an error")
        if self._tiff is not None:
            # Pillow has oriented it. Undoing that costs a copy, but such files are rare.
            pixels = upright(pixels, {6: 8, 8: 6}.get(self.orientation, self.orientation))
        if pixels.shape != (self.height, self.width, 3):
            raise ImageError(
                f"decodes to {pixels.shape[1]} x {pixels.shape[0]} pixels, but its header says "
                f"{self.width} x {self.height}"
            )
        return pixels

    def _opened(self) -> Image.Image:
        needs = _NEEDS.get(self._kind)
        if needs is not None and not features.check(needs):
            raise ImageError(f"Pillow was built without {self._kind}; convert it to JPEG")
        if self._kind not in Image.OPEN:
            Image.init()
        try:
            # Like Image.open, but without its limit, which warns on standard error.
            return Image.OPEN[self._kind][0](self._file, "")
        except MemoryError:
            raise
        except Exception as error:  # as above
            raise ImageError(self._reason(error, "its header cannot be read")) from None

    def _rgb(self) -> NDArray[np.uint8]:
        image = self._image
        image.load()
        if not image.mode.startswith("I"):
            return np.array(image.convert("RGB"))
        # Grey of 9 to 16 bits, which convert() would clip at 255.
        grey = np.asarray(image).astype(np.int64)
        if self._tiff is not None:
            if self._tiff.zero_is_white:
                grey = (1 << self._tiff.bits) - 1 - grey
            grey <<= 16 - self._tiff.bits
        grey = (grey >> 8).clip(0, 255)
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)

    def _check_jpegs(self, tiff: TiffHeader) -> None:
        """Decode the JPEG streams of a TIFF strictly: libtiff ignores libjpeg's warnings."""
        for offset, size in tiff.jpegs:
            self._file.seek(offset)
            stream = self._file.read(size)
            if tiff.jpeg_tables:  # both have a start and an end marker
                stream = tiff.jpeg_tables[:-2] + stream[2:]
            try:
                decode_jpeg(stream, max_pixels=tiff.block)
            except JpegError as error:
                raise ImageError(f"damaged TIFF: {error}") from None

    def _stored_orientation(self) -> int:
        block = self._image.info.get("exif")
        if self._kind == "PNG":  # Pillow finds a block after the pixels only once it has decoded
            position = self._file.tell()  # where Pillow continues to read
            block = png_exif(self._file)
            self._file.seek(position)
        return exif_orientation(block.removeprefix(b"Exif\0\0")) if isinstance(block, bytes) else 1

    def _reason(self, error: Exception, otherwise: str = "") -> str:
        message = " ".join(str(error).split())
        if isinstance(error, UnidentifiedImageError) or not message:
            message = otherwise or type(error).__name__
        return f"damaged {self._kind.replace('PPM', 'PNM')}: {message}"


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Rotate or mirror stored pixels of shape (h, w, 3) to upright ones of shape (H, W, 3).

    Orientations as in CIPA DC-008: 2 mirrored, 3 upside down, 4 upside down and mirrored,
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
