"""Reads what a TIFF states about its first page, before any decoder sees the file.

Only the entries of one directory are read, so this takes microseconds and allocates nothing that
depends on the file's claims. TIFF 6.0, and BigTIFF as in libtiff 4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _ORIENTATION, _SAMPLES, _STRIP_ROWS, _STRIP_SIZES, _PLANAR = 273, 274, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES, _SAMPLE_FORMAT = 322, 323, 324, 325, 339
_JPEG_TABLES, _DNG = 347, 50706
_OLD_JPEG, _JPEG = 6, 7
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_BYTE_TYPES = (1, 2, 6, 7)
_MAX_ENTRIES, _MAX_SAMPLES = 4096, 6
_FEW = 8  # values of a tag to read; further ones add nothing that is needed here
_UNSIGNED = (1, 4)  # 4: undefined, which readers treat as unsigned
_CANON = b"CR\x02"


class TiffError(ValueError):
    """Raised if the first page cannot be read; the message says why."""


@dataclass(frozen=True)
class TiffHeader:
    """The header of the first page.

    Attributes:
        width: pixels as stored, before orientation.
        height: pixels as stored, before orientation.
        orientation: 1 to 8; 1 if it is missing or out of range.
        bits: bits per sample.
        zero_is_white: whether the grey value 0 means white.
        block: pixels of the largest strip or tile, which a decoder holds in memory at once.
        jpegs: offset and size in bytes of each strip or tile that is a JPEG stream.
        jpeg_tables: the tables that these streams share.
    """

    width: int
    height: int
    orientation: int
    bits: int
    zero_is_white: bool
    block: int
    jpegs: tuple[tuple[int, int], ...] = ()
    jpeg_tables: bytes = b""


def read_tiff_header(file: BinaryIO) -> TiffHeader:
    """Read the directory of the first page.

    Raises:
        TiffError: it is cut short, contradicts itself, is the thumbnail of a camera's raw file, or
            its samples are not unsigned integers of 1 to 16 bits.
    """
    file.seek(0)
    page = _Directory(file)
    if page.is_raw or _DNG in page.entries or page.first(_SUBFILE, 0) & 1:
        raise TiffError("a camera's raw image, whose first picture is a thumbnail; convert it")
    width, height = page.first(_WIDTH, 0), page.first(_HEIGHT, 0)
    if not width or not height:
        raise TiffError(f"damaged TIFF: {width} x {height} pixels")
    bits, formats = max(page.values(_BITS) or [1]), page.values(_SAMPLE_FORMAT) or [1]
    if bits > 16 or any(value not in _UNSIGNED for value in formats):
        kind = {2: "signed ", 3: "floating-point "}.get(formats[0], "")
        raise TiffError(
            f"a TIFF with {kind}samples of {bits} bits, whose black and white levels are unknown; "
            "save it with 8 or 16 bits"
        )
    samples = page.first(_SAMPLES, 1)
    if samples > _MAX_SAMPLES:
        raise TiffError(f"a TIFF with {samples} samples per pixel; save it as grey, RGB or CMYK")
    if _STRIPS in page.entries:
        across, down = width, min(page.first(_STRIP_ROWS, height), height)
        places, sizes = _STRIPS, _STRIP_SIZES
    else:
        across, down = page.first(_TILE_WIDTH, 0), page.first(_TILE_HEIGHT, 0)
        places, sizes = _TILES, _TILE_SIZES
    if not across or not down:
        raise TiffError("damaged TIFF: strips or tiles without pixels")
    planes = samples if page.first(_PLANAR, 1) == 2 else 1
    count = -(-width // across) * -(-height // down) * planes
    if page.count(places) < count:
        raise TiffError("damaged TIFF: fewer strips or tiles than the image needs")
    jpegs: tuple[tuple[int, int], ...] = ()
    if (compression := page.first(_COMPRESSION, 1)) == _OLD_JPEG:
        raise TiffError("a TIFF with JPEG data in the old form of 1992; convert it")
    if compression == _JPEG:
        pairs = zip(page.values(places, count), page.values(sizes, count), strict=False)
        jpegs = tuple(pairs)
    turn = page.first(_ORIENTATION, 1)
    return TiffHeader(
        width=width,
        height=height,
        orientation=turn if 1 <= turn <= 8 else 1,
        bits=bits,
        zero_is_white=page.first(_PHOTOMETRIC, 0) == 0,
        block=across * down,
        jpegs=jpegs,
        jpeg_tables=page.bytes_of(_JPEG_TABLES),
    )


class _Directory:
    """The entries of the first page by tag; values are read on demand."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        start = file.read(16)
        self._order = "<" if start[:2] == b"II" else ">"
        self._big = start[2:4] in (b"+\0", b"\0+")
        self.is_raw = start[8:11] == _CANON
        self._word, count, self._entry = ("Q", "Q", "HHQ") if self._big else ("I", "H", "HHI")
        (at,) = self._unpack(self._word, 8 if self._big else 4)
        (entries,) = self._unpack(count, at)
        if not 0 < entries <= _MAX_ENTRIES:
            raise TiffError(f"damaged TIFF: a page with {entries} entries")
        at += struct.calcsize(self._order + count)
        self.entries: dict[int, tuple[int, int, int]] = {}
        for _ in range(entries):
            tag, kind, values = self._unpack(self._entry, at)
            body = at + struct.calcsize(self._order + self._entry)
            self.entries.setdefault(tag, (kind, values, body))
            at = body + struct.calcsize(self._order + self._word)

    def count(self, tag: int) -> int:
        """Return the number of values of a tag, 0 if it is missing."""
        return self.entries[tag][1] if tag in self.entries else 0

    def bytes_of(self, tag: int) -> bytes:
        """Return the value of a byte tag, empty if it is missing."""
        kind, count, at = self.entries.get(tag, (0, 0, 0))
        if kind not in _BYTE_TYPES:
            return b""
        if count > struct.calcsize("=" + self._word):
            (at,) = self._unpack(self._word, at)
        self._file.seek(at)
        return self._file.read(count)

    def values(self, tag: int, most: int = _FEW) -> list[int]:
        """Return the first ``most`` values of an integer tag, empty if it is missing."""
        if tag not in self.entries:
            return []
        kind, count, at = self.entries[tag]
        if kind not in _INTEGERS or not count:
            raise TiffError(f"damaged TIFF: tag {tag} holds no integer")
        code = _INTEGERS[kind]
        if count * struct.calcsize("=" + code) > struct.calcsize("=" + self._word):
            (at,) = self._unpack(self._word, at)
        return list(self._unpack(code * min(count, most), at))

    def first(self, tag: int, default: int) -> int:
        """Return the first value of an integer tag, or ``default`` if it is missing."""
        values = self.values(tag)
        return values[0] if values else default

    def _unpack(self, code: str, at: int) -> tuple[int, ...]:
        size = struct.calcsize(self._order + code)
        try:
            self._file.seek(at)
            return struct.unpack(self._order + code, self._file.read(size))
        except (struct.error, OSError, OverflowError, ValueError):
            raise TiffError("truncated TIFF: it ends within its header") from None
