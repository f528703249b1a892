"""Finds the EXIF block of a PNG, which the format allows before or after the pixels.

Only chunk headers are read, so this costs one seek per chunk. PNG specification, third edition,
section 11.3.4.5 (eXIf).
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

_SIGNATURE_BYTES = 8
_CRC_BYTES = 4
_HEADER = struct.Struct(">I4s")
_MAX_EXIF_BYTES = 2**20


def png_exif(file: BinaryIO) -> bytes:
    """Return the first eXIf chunk of a PNG, from its TIFF header on; empty if there is none.

    A file that ends early counts as having none; the decoder then checks that its pixels are whole.

    Args:
        file: open file at any position; it is read from its start.
    """
    file.seek(_SIGNATURE_BYTES)
    while True:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return b""
        size, kind = _HEADER.unpack(header)
        if kind == b"eXIf":
            return file.read(min(size, _MAX_EXIF_BYTES))
        if kind == b"IEND":
            return b""
        file.seek(size + _CRC_BYTES, io.SEEK_CUR)
