"""Images that are no JPEG, by Pillow, which is told the one format that their bytes announce.

Sixteen bits a sample are cut to the upper 8, a palette is looked up, transparency is dropped:
what is under it shows, and where a GIF's picture does not cover its canvas, the transparent colour
or the first one. The samples of a PNM are scaled by its largest value, and rounded.
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

# Of tags that a decoder does not need; what it needs has been read before it.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

_NEEDS = {"AVIF": "avif", "WEBP": "webp"}
"""Formats that Pillow may have been built without."""


class ImageError(ValueError):
    """The bytes are no sound image of their format; the message says why."""


class PillowImage:
    """An image of which the header has been read.

    Args:
        file: opened for reading; it is read from its start.
        kind: Pillow's name of the format.

    Attributes:
        width: pixels, as stored, before orientation.
        height: pixels, as stored, before orientation.
        orientation: EXIF orientation, 1 to 8, of the format's own tag in a TIFF, and from ``irot``
            and ``imir`` in an AVIF, where EXIF does not count.
        memory: the most pixels that its decoder has in memory at once.

    Raises:
        ImageError: its header cannot be read.
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
            max_pixels: the cap that ``memory`` was held against.

        Raises:
            ImageError: damaged, cut short, or of a kind that Pillow does not know.
        """
        if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow has a cap of its own
        listening: AbstractContextManager[list[str]] = nullcontext([])
        if self._tiff is not None:
            self._check_jpegs(self._tiff)
            listening = libtiff_errors()
        with listening as complaints:
            try:
                pixels = self._rgb()
            except MemoryError:
                raise
            except Exception as error:  # Pillow's decoders raise whatever they trip over
                raise ImageError(self._reason(error)) from None
        if complaints:
            raise ImageError(f"damaged TIFF: {complaints[0]} complains")
        if self._tiff is not None:
            # Pillow has turned it. There and back again costs a copy of a rare thing.
            pixels = upright(pixels, {6: 8, 8: 6}.get(self.orientation, self.orientation))
        if pixels.shape != (self.height, self.width, 3):
            raise ImageError(
                f"decodes to {pixels.shape[1]} x {pixels.shape[0]} pixels, its header says "
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
            # As Image.open does, but for its cap, which warns on standard error.
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
        # 9 to 16 bits of grey, which convert() would clip at 255.
        grey = np.asarray(image).astype(np.int64)
        if self._tiff is not None:
            if self._tiff.zero_is_white:
                grey = (1 << self._tiff.bits) - 1 - grey
            grey <<= 16 - self._tiff.bits
        grey = (grey >> 8).clip(0, 255)
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)

    def _check_jpegs(self, tiff: TiffHeader) -> None:
        """Decode the JPEG streams of a TIFF strictly: libtiff drops what libjpeg warns of."""
        for offset, size in tiff.jpegs:
            self._file.seek(offset)
            stream = self._file.read(size)
            if tiff.jpeg_tables:  # each between a start and an end marker
                stream = tiff.jpeg_tables[:-2] + stream[2:]
            try:
                decode_jpeg(stream, max_pixels=tiff.block)
            except JpegError as error:
                raise ImageError(f"damaged TIFF: {error}") from None

    def _stored_orientation(self) -> int:
        block = self._image.info.get("exif")
        if self._kind == "PNG":  # of one behind the pixels Pillow tells when it has decoded them
            position = self._file.tell()  # where Pillow goes on reading
            block = png_exif(self._file)
            self._file.seek(position)
        return exif_orientation(block.removeprefix(b"Exif\0\0")) if isinstance(block, bytes) else 1

    def _reason(self, error: Exception, otherwise: str = "") -> str:
        message = " ".join(str(error).split())
        if isinstance(error, UnidentifiedImageError) or not message:
            message = otherwise or type(error).__name__
        return f"damaged {self._kind.replace('PPM', 'PNM')}: {message}"


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
