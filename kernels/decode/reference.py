"""JPEG decoding by Pillow: the reference for the pixels, and the fallback without the extension.

Pillow refuses a file that ends early, but it ignores libjpeg's warnings, so damage in the middle of
a scan silently gives wrong pixels. Only the compiled decoder, or a checksum of the bytes, finds it.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from fastrot.kernels.decode.header import JpegError
from fastrot.kernels.decode.markers import walk_markers

MAX_SCANS = 100
"""As in jpeg.cpp: every scan visits each block, so many empty ones would keep a core busy."""


def decode_jpeg(
    data: bytes | memoryview, max_pixels: int, denominator: int = 1
) -> NDArray[np.uint8]:
    """Return pixels of shape (H, W, 3), RGB; EXIF orientation is not applied.

    Args:
        data: the file; its header has been checked against ``max_pixels``.
        max_pixels: unused, since the caller has checked; matches the compiled decoder's signature.
        denominator: 1, 2, 4 or 8: shrink in the DCT domain.

    Raises:
        JpegError: the file ends early, or Pillow refuses it.
    """
    walk = walk_markers(bytes(data))
    if walk.end is None:
        raise JpegError("the file ends before its end-of-image marker")
    if walk.scans > MAX_SCANS:
        raise JpegError(f"more than {MAX_SCANS} scans, which only a hostile file has")
    try:
        with JpegImageFile(io.BytesIO(data)) as image:  # Image.open has its own cap
            if denominator > 1:
                image.draft(None, (image.width // denominator, image.height // denominator))
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error) as error:
        # Pillow's parsers raise all of these on damaged metadata and pixels.
        raise JpegError(f"Pillow: {' '.join(str(error).split())}") from None
