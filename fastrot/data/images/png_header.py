"""The EXIF block of a PNG, wherever it stands: the format allows it before and after the pixels.

Chunk headers alone are read, so this costs a seek a chunk. PNG specification, third edition,
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
    """Return the first eXIf chunk of a PNG, from its TIFF header on; empty where there is none.

    A file that ends early has none either: whether its pixels are whole, the decoder finds out.

    Args:
        file: anywhere; it is read from its start.
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
