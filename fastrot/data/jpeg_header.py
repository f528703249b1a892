"""What a JPEG says about itself before its pixels: size, components, EXIF orientation.

Only markers up to the first scan are read, so this costs microseconds and allocates nothing that
depends on the image's size. Marker layout: ITU-T T.81 annex B; EXIF orientation: CIPA DC-008
(tag 0x0112 of IFD 0).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset(range(0xD0, 0xD8)) | {0x01}
_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1
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
        ValueError: no JPEG, or no complete header; the message says what is missing.
    """
    data = file.read(_FIRST_READ)
    while True:
        try:
            return _parse(data)
        except IndexError:
            more = file.read(3 * len(data))
            if not more:
                raise ValueError("truncated JPEG: it ends within its header") from None
            data += more


def _parse(data: bytes) -> JpegHeader:
    """Walk over the markers; IndexError where ``data`` ends before the first scan."""
    if not data.startswith(b"\xff\xd8"):
        raise ValueError("no JPEG start marker")
    frame: tuple[int, int, int, int] | None = None
    orientation: int | None = None
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError("JPEG has stray bytes between its markers")
        while (marker := data[at + 1]) == 0xFF:  # fill bytes
            at += 1
        at += 2
        if marker in (_SCAN, _END):
            break
        if marker in _STANDALONE:
            continue
        length = data[at] << 8 | data[at + 1]
        if length < 2:
            raise ValueError(f"JPEG marker 0x{marker:02X} has length {length}, must be at least 2")
        if marker in _START_OF_FRAME:
            if frame is not None:
                raise ValueError("JPEG has two frame headers")
            if length < 8:
                raise ValueError(f"JPEG frame header has length {length}, must be at least 8")
            data[at + 7]  # all six bytes are there, or IndexError
            frame = struct.unpack_from(">BHHB", data, at + 2)
        elif marker == _APP1 and orientation is None:
            data[at + length - 1]  # likewise
            if data.startswith(b"Exif\0", at + 2):
                orientation = exif_orientation(data[at + 8 : at + length])
        at += length
    if frame is None:
        raise ValueError("JPEG has no frame header")
    bits, height, width, components = frame
    if not width or not height:
        raise ValueError(f"JPEG header says {width} x {height} pixels")
    return JpegHeader(width, height, components, bits, orientation or 1)


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
