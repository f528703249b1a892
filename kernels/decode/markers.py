"""``walk_jpeg``: reads all markers of a JPEG, from the first to the end of the image.

This finds a file that is cut short or whose segments contradict each other, as fast as memory can
be searched. It cannot find damage inside the coded pixels, because it decodes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from fastrot.kernels.decode.header import (
    APP1,
    FRAMES,
    SOS,
    JpegError,
    JpegHeader,
    frame_header,
    segments,
)
from fastrot.kernels.dispatch import choose

_EOI = 0xD9
_EXIF = b"Exif\0"
_EXIF_HEAD = 6  # bytes before the TIFF block


@dataclass(frozen=True)
class JpegWalk:
    """Contents of a file's markers.

    Attributes:
        frame: size, components, precision, process.
        exif: the TIFF block of the first EXIF segment before the scans; empty: there is none.
        scans: number of scans.
        end: offset after the end-of-image marker; None: no marker, the file is cut short.
    """

    frame: JpegHeader
    exif: bytes
    scans: int
    end: int | None


def walk_jpeg(data: bytes) -> JpegWalk:
    """Walk over the markers of a whole JPEG file.

    Raises:
        JpegError: the data is not a JPEG, has no frame or more than one, has no scan, or a segment
            contradicts the file.
        KernelUnavailableError: FASTROT_KERNELS forces an implementation that cannot run.
    """
    if choose("walk_jpeg").implementation == "cpp":
        from fastrot.kernels import _native

        found = _native.walk_jpeg(data)
        if found is not None:
            return _built(data, *found)
    return walk_markers(data)


def read_jpeg(path: str, size: int) -> tuple[bytes, JpegWalk]:
    """Read a JPEG file and walk over its markers.

    Args:
        path: path of the file.
        size: its expected size in bytes; a wrong size only costs time.

    Raises:
        JpegError: as ``walk_jpeg``.
        OSError: the file cannot be read.
        KernelUnavailableError: FASTROT_KERNELS forces an implementation that cannot run.
    """
    if choose("walk_jpeg").implementation == "cpp":
        from fastrot.kernels import _native

        found = _native.read_jpeg(os.fsencode(path), size)
        if found is not None:
            return found[0], _built(found[0], *found[1])
    with open(path, "rb") as file:
        data = file.read()
    return data, walk_jpeg(data)


def announce_files(paths: Sequence[str]) -> None:
    """Tell the system that these files will be read soon; without the extension, do nothing."""
    if choose("walk_jpeg").implementation == "cpp":
        from fastrot.kernels import _native

        _native.announce_files([os.fsencode(path) for path in paths])


def _built(
    data: bytes, marker: int, start: int, exif_start: int, exif_stop: int, scans: int, end: int
) -> JpegWalk:
    frame = frame_header(data, marker, start, start + 6 + 3 * data[start + 5])
    return JpegWalk(frame, data[exif_start:exif_stop], scans, end)


def walk_markers(data: bytes) -> JpegWalk:
    """Walk in Python: the reference for ``walk_jpeg``, and the errors for damaged files."""
    frame: JpegHeader | None = None
    exif: bytes | None = None
    scans, end = 0, None
    for marker, start, stop in segments(data):
        if marker in FRAMES:
            if frame is not None:
                raise JpegError("JPEG has two frame headers")
            frame = frame_header(data, marker, start, stop)
        elif marker == SOS:
            scans += 1
        elif marker == _EOI:
            end = stop
        elif marker == APP1 and exif is None and not scans and data.startswith(_EXIF, start, stop):
            exif = data[start + _EXIF_HEAD : stop]
    if frame is None or not scans:
        raise JpegError("JPEG has no frame header or no scan")
    return JpegWalk(frame, exif or b"", scans, end)
