"""Reads what a JPEG states before its pixels: size, components, EXIF orientation.

Only the start of the file is read, up to the first scan, so this takes microseconds and allocates
nothing that depends on the image size. EXIF orientation: CIPA DC-008 (tag 0x0112 of IFD 0).
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from fastrot.kernels.decode.header import (
    APP1,
    FRAMES,
    SOS,
    JpegCutShortError,
    JpegError,
    JpegHeader,
    frame_header,
    segments,
)

_FIRST_READ = 2**14  # bytes; most headers are shorter
_ORIENTATION_TAG = 0x0112
_INTEGER_TYPES = (3, 4)  # SHORT; LONG is wrong but some tools write it


def read_jpeg_header(file: BinaryIO) -> tuple[JpegHeader, int]:
    """Read the markers from the start of ``file`` to its first scan.

    Returns:
        The frame header, and the EXIF orientation, 1 to 8; 1 if the block is missing or broken.

    Raises:
        JpegError: it is not a JPEG or its header is incomplete; the message says what is missing.
    """
    data = file.read(_FIRST_READ)
    while True:
        try:
            return _parse(data)
        except JpegCutShortError:
            more = file.read(3 * len(data))
            if not more:
                raise JpegError("truncated JPEG: it ends within its header") from None
            data += more


def _parse(data: bytes) -> tuple[JpegHeader, int]:
    frame = None
    orientation: int | None = None
    for marker, start, stop in segments(data):
        if marker == SOS:
            break
        if marker in FRAMES:
            if frame is not None:
                raise JpegError("JPEG has two frame headers")
            frame = frame_header(data, marker, start, stop)
        elif marker == APP1 and orientation is None:
            if data.startswith(b"Exif\0", start):
                orientation = exif_orientation(data[start + 6 : stop])
    else:
        raise JpegCutShortError("the file ends before its first scan")
    if frame is None:
        raise JpegError("JPEG has no frame header")
    return frame, orientation or 1


def exif_orientation(tiff: bytes) -> int:
    """Return the orientation in an EXIF block (from its TIFF header on), or 1 if it has none.

    A broken block counts as 1, as in Pillow and the tools built on it: the pixels are intact.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", tiff, entry)
            if tag == _ORIENTATION_TAG and kind in _INTEGER_TYPES and values == 1:
                (value,) = struct.unpack_from(order + " HI"[kind - 2], tiff, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1
