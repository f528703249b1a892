"""What a JPEG says about itself before its pixels: size, components, EXIF orientation.

Only the start of the file is read, up to the first scan, so this costs microseconds and allocates
nothing that depends on the image's size. EXIF orientation: CIPA DC-008 (tag 0x0112 of IFD 0).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from fastrot.kernels.decode.header import (
    APP1,
    FRAMES,
    SOS,
    JpegCutShortError,
    JpegError,
    frame_header,
    segments,
)

_FIRST_READ = 2**14  # bytes; most headers are shorter
_ORIENTATION_TAG = 0x0112
_INTEGER_TYPES = (3, 4)  # SHORT; LONG is wrong but some tools write it


@dataclass(frozen=True)
class JpegHeader:
    """Frame header of a JPEG.

    Attributes:
        width: pixels as stored, before orientation.
        height: pixels as stored, before orientation.
        components: 1 grey, 3 colour, 4 CMYK or YCCK.
        bits: precision of a sample.
        orientation: of the EXIF block, 1 to 8; 1 where there is none or it is broken.
    """

    width: int
    height: int
    components: int
    bits: int
    orientation: int


def read_jpeg_header(file: BinaryIO) -> JpegHeader:
    """Read the markers from the start of ``file`` to its first scan.

    Raises:
        JpegError: no JPEG, or no complete header; the message says what is missing.
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


def _parse(data: bytes) -> JpegHeader:
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
    return JpegHeader(
        frame.width, frame.height, frame.components, frame.precision, orientation or 1
    )


def exif_orientation(tiff: bytes) -> int:
    """Orientation of an EXIF block (from its TIFF header on), 1 where it says nothing valid.

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
