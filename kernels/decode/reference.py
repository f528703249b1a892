"""JPEG decoding by Pillow: the definition of the pixels, and the path without the extension.

Pillow refuses a file that ends early, but it drops libjpeg's warnings, so damage in the middle of
a scan gives wrong pixels without a word. Only the compiled decoder, or a checksum of the bytes,
finds that.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from fastrot.kernels.decode.header import JpegError, jpeg_end, scan_count

MAX_SCANS = 100
"""As in decode.cpp: every scan visits each block, so many empty ones keep a core busy."""


def decode_jpeg(
    data: bytes | memoryview, max_pixels: int, denominator: int = 1
) -> NDArray[np.uint8]:
    """Pixels of shape (H, W, 3), RGB, without EXIF orientation.

    Args:
        data: the file; its header has been checked against ``max_pixels``.
        max_pixels: unused, since the caller checked; it keeps the signature of the compiled one.
        denominator: 1, 2, 4 or 8: shrink in the DCT domain.

    Raises:
        JpegError: the file ends early, or Pillow refuses it.
    """
    if jpeg_end(data) is None:
        raise JpegError("the file ends before its end-of-image marker")
    if scan_count(data) > MAX_SCANS:
        raise JpegError(f"more than {MAX_SCANS} scans, which only a hostile file has")
    try:
        with JpegImageFile(io.BytesIO(data)) as image:  # Image.open has a cap of its own
            if denominator > 1:
                image.draft(None, (image.width // denominator, image.height // denominator))
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error) as error:
        # what Pillow's parsers raise on damaged metadata and pixels
        raise JpegError(f"Pillow: {' '.join(str(error).split())}") from None
