"""What all markers of a JPEG say, from the first to the end of the image; nothing is decoded.

This finds a file that is cut short or whose segments contradict each other, at the speed at which
memory is searched. Damage inside the coded pixels it cannot find. Importing this imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastrot.data.jpeg_header import exif_orientation
from fastrot.kernels.decode.header import APP1, FRAMES, SOS, JpegError, frame_header, segments
from fastrot.kernels.decode.header import JpegHeader as FrameHeader

_EOI = 0xD9


@dataclass(frozen=True)
class JpegWalk:
    """What the markers say.

    Attributes:
        frame: size, components, precision, process.
        orientation: of the EXIF block, 1 to 8; 1 where there is none or it is broken.
        scans: how many there are.
        end: offset behind the end-of-image marker; None: it has none, the file is cut short.
    """

    frame: FrameHeader
    orientation: int
    scans: int
    end: int | None


def walk_jpeg(data: bytes) -> JpegWalk:
    """Walk over the markers of a whole JPEG file.

    Raises:
        JpegError: no JPEG, no frame or more than one, or a segment that contradicts the file.
    """
    frame: FrameHeader | None = None
    orientation: int | None = None
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
        elif marker == APP1 and orientation is None and not scans:
            if data.startswith(b"Exif\0", start):
                orientation = exif_orientation(data[start + 6 : stop])
    if frame is None or not scans:
        raise JpegError("JPEG has no frame header or no scan")
    return JpegWalk(frame, orientation or 1, scans, end)
