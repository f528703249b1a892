"""``decode_jpeg``: decodes a JPEG file to RGB pixels or fails; never returns doubtful pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastrot.kernels.decode.header import JpegError, JpegHeader, jpeg_header
from fastrot.kernels.dispatch import choose

__all__ = ["MAX_PIXELS", "JpegError", "decode_jpeg"]

MAX_PIXELS = 64 * 2**20
"""Default cap on the pixels per image (64 Mpx): 192 MiB decoded."""


def decode_jpeg(
    data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS, denominator: int = 1
) -> NDArray[np.uint8]:
    """Decode a JPEG file strictly.

    The compiled decoder treats every warning of libjpeg-turbo as an error, except two that affect
    no pixel (``native/jpeg.cpp`` lists them); its pixels equal Pillow's bit for bit. Without it
    Pillow decodes, which misses some damage in the middle of a file (``reference.py``). Grey and
    CMYK become RGB by Pillow's rules. Bytes after the end-of-image marker are ignored. EXIF
    orientation is not applied.

    Args:
        data: the whole file, contiguous bytes; it is not copied.
        max_pixels: refuse larger images, before anything is allocated.
        denominator: 1, 2, 4 or 8: shrink in the DCT domain, which saves time and memory.

    Returns:
        Pixels of shape (H, W, 3), uint8, RGB; H and W are divided by the denominator, rounded up.

    Raises:
        JpegError: the data is not a JPEG, damaged, cut short, too large, or of an unsupported kind
            (12 bits, lossless, arithmetic-coded).
        KernelUnavailableError: FASTROT_KERNELS forces an implementation that cannot run.
    """
    _check(jpeg_header(data), max_pixels)
    if choose("decode_jpeg").implementation == "reference":
        from fastrot.kernels.decode import reference

        return reference.decode_jpeg(data, max_pixels, denominator)
    from fastrot.kernels import _native

    try:
        return _native.decode_jpeg(data, max_pixels, denominator)
    except ValueError as error:
        raise JpegError(f"libjpeg: {error}") from None


def _check(header: JpegHeader, max_pixels: int) -> None:
    """Refuse, by the header, files that builds of libjpeg would treat differently."""
    if header.width * header.height > max_pixels:
        raise JpegError(
            f"{header.width} x {header.height} pixels exceed the cap of {max_pixels}; "
            "shrink the image or raise the cap"
        )
    if header.process:
        raise JpegError(
            f"{header.process} JPEG is not supported; save it as baseline or progressive"
        )
    if header.precision != 8:
        raise JpegError(f"{header.precision} bits per sample are not supported; save it with 8")
    if header.components not in (1, 3, 4):
        raise JpegError(
            f"{header.components} components are not supported; use 1 (grey), 3 or 4 (CMYK)"
        )
