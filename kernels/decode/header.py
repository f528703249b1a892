"""Header of a JPEG file, read without decoding its pixels.

A bounds-checked walk over the markers of ITU-T T.81 (annex B): no allocation depends on the file's
claims, and every length is checked against the bytes that are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

SOS, APP1 = 0xDA, 0xE1
_SOI, _EOI, _TEM = 0xD8, 0xD9, 0x01
_RESTARTS = range(0xD0, 0xD8)
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # DHT, JPG and DAC are no frames
_PROCESSES = {
    0xC3: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical",
    0xC9: "arithmetic-coded",
    0xCA: "arithmetic-coded",
    0xCB: "arithmetic-coded lossless",
    0xCD: "arithmetic-coded hierarchical",
    0xCE: "arithmetic-coded hierarchical",
    0xCF: "arithmetic-coded hierarchical",
}
# Within a scan FF 00 is a byte of data and FF D0..D7 a restart; FF FF is padding.
_MARKER_IN_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)


class JpegError(ValueError):
    """The bytes are not a JPEG, or not one with reliable pixels; the message says why."""


class JpegCutShortError(JpegError):
    """The bytes end earlier than they announce; more bytes of the file may fix that."""


@dataclass(frozen=True)
class JpegHeader:
    """The frame header.

    Attributes:
        width: pixels per row, before EXIF orientation.
        height: rows, before EXIF orientation.
        components: 1 grey, 3 colour, 4 CMYK or YCCK.
        precision: bits per sample.
        process: "" for the processes that every decoder supports (baseline, extended Huffman,
            progressive), otherwise the name of the process, e.g. "arithmetic-coded".
        ends_with_eoi: whether the last two bytes of the file are the end-of-image marker; a sound
            file may have more bytes after it (``markers.walk_markers`` then finds the marker).
    """

    width: int
    height: int
    components: int
    precision: int
    process: str
    ends_with_eoi: bool


def jpeg_header(data: bytes | memoryview) -> JpegHeader:
    """Read the frame header, which comes before the first scan.

    Args:
        data: the file; the walk stops at the frame header.

    Raises:
        JpegError: the data is not a JPEG, is cut short, or its header contradicts itself.
    """
    for marker, start, stop in segments(data):
        if marker in FRAMES:
            return frame_header(data, marker, start, stop)
    raise JpegError("no frame header before the first scan: the file is cut short or not an image")


def segments(data: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, stop) of each segment's payload, up to the end of the image.

    Entropy-coded data is skipped, so a scan is followed by the next marker.

    Raises:
        JpegCutShortError: a segment extends beyond ``data``.
        JpegError: the data is not a JPEG.
    """
    if len(data) == 0:
        raise JpegError("the file is empty")
    if bytes(data[:2]) != b"\xff\xd8":
        raise JpegError(f"not a JPEG: it begins with {bytes(data[:16])!r}, not with FF D8")
    at = 2
    while at < len(data):
        if data[at] != 0xFF:
            raise JpegError(f"byte {at} is {data[at]:#04x} where a marker must begin with 0xff")
        while at < len(data) and data[at] == 0xFF:
            at += 1
        if at == len(data):
            return
        marker = data[at]
        at += 1
        if marker == _EOI:
            yield marker, at, at
            return
        if marker in _RESTARTS or marker == _TEM:
            continue
        if marker in (0x00, _SOI):
            raise JpegError(f"byte {at - 1} is {marker:#04x}, not a marker that begins a segment")
        length = int.from_bytes(data[at : at + 2], "big")
        if at + 2 > len(data) or at + length > len(data):
            raise JpegCutShortError(
                f"the segment at byte {at} is {length} bytes long but must end within the "
                f"{len(data)} bytes of the file"
            )
        if length < 2:
            raise JpegError(f"the segment at byte {at} has {length} bytes but must have at least 2")
        yield marker, at + 2, at + length
        at += length
        if marker == SOS:
            found = _MARKER_IN_SCAN.search(data, at)
            if found is None:
                return
            at = found.start()


def frame_header(data: bytes | memoryview, marker: int, start: int, stop: int) -> JpegHeader:
    """Read the segment that ``segments`` yielded for a marker in ``FRAMES``.

    Raises:
        JpegError: the segment contradicts itself.
    """
    if stop - start < 6:
        raise JpegError(f"the frame header is {stop - start} bytes long but must be at least 6")
    components = data[start + 5]
    if stop - start != 6 + 3 * components:
        raise JpegError(
            f"the frame header is {stop - start} bytes long but must be {6 + 3 * components} for "
            f"{components} components"
        )
    height = int.from_bytes(data[start + 1 : start + 3], "big")
    width = int.from_bytes(data[start + 3 : start + 5], "big")
    if width == 0 or height == 0:
        raise JpegError(f"the frame header says {width} x {height} pixels; it needs at least 1 x 1")
    return JpegHeader(
        width=width,
        height=height,
        components=components,
        precision=data[start],
        process=_PROCESSES.get(marker, ""),
        ends_with_eoi=bytes(data[-2:]) == b"\xff\xd9",
    )
