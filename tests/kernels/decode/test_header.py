"""The marker walk: right facts of real files, bounded behaviour on everything else."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastrot.kernels.decode.header import JpegError, jpeg_header
from fastrot.kernels.decode.markers import walk_markers


def encode(mode: str = "RGB", size: tuple[int, int] = (33, 17), **options: object) -> bytes:
    channels = len(mode)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_header_states_the_frame(mode: str, progressive: bool) -> None:
    data = encode(mode, progressive=progressive)
    header = jpeg_header(data)
    assert (header.width, header.height) == (33, 17)
    assert header.components == len(mode)
    assert (header.precision, header.process, header.ends_with_eoi) == (8, "", True)


def test_header_agrees_with_pillow_on_real_files(test_data) -> None:
    for path in sorted(test_data("imagenet-300").glob("*"))[::5]:
        data = path.read_bytes()
        with Image.open(path) as image:
            assert (jpeg_header(data).width, jpeg_header(data).height) == image.size
        end = walk_markers(data).end
        assert end is not None and data[end - 2 : end] == b"\xff\xd9"


def test_a_thumbnail_in_exif_is_not_taken_for_the_image() -> None:
    thumbnail = encode(size=(8, 8))
    data = encode()
    segment = b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(thumbnail)) + b"Exif\0\0" + thumbnail
    data = data[:2] + segment + data[2:]
    assert (jpeg_header(data).width, jpeg_header(data).height) == (33, 17)
    assert walk_markers(data).end == len(data)
    assert walk_markers(data).scans == 1


def test_end_is_found_ahead_of_trailing_bytes() -> None:
    data = encode()
    assert walk_markers(data + b"\xff\xd9 and more").end == len(data)
    assert not jpeg_header(data + b"more").ends_with_eoi
    assert walk_markers(data[:-2]).end is None
    assert walk_markers(data[:-1]).end is None


def test_scans_are_counted() -> None:
    assert walk_markers(encode()).scans == 1
    assert walk_markers(encode(restart_marker_blocks=1)).scans == 1
    assert walk_markers(encode(progressive=True)).scans == 10


def test_padding_before_a_marker_is_allowed() -> None:
    data = encode()
    assert jpeg_header(data[:2] + b"\xff\xff\xff" + data[2:]).width == 33


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE HTML>", "begins with b'<!DOCTYPE HTML>'"),
        (b"\xff\xd8", "no frame header"),
        (b"\xff\xd8\xff", "no frame header"),
        (b"\xff\xd8\xff\xd9", "no frame header"),
        (b"\xff\xd8\x00\xff\xd9", "byte 2 is 0x00"),
        (b"\xff\xd8\xff\xe0", "must end within"),
        (b"\xff\xd8\xff\xe0\x00\x01", "1 bytes but must have at least 2"),
        (b"\xff\xd8\xff\xe0\x40\x00JFIF", "end within the 10 bytes"),
        (b"\xff\xd8\xff\xc0\x00\x04\x08\x00", "frame header is 2 bytes long"),
        (b"\xff\xd8\xff\xc0\x00\x08\x08\x00\x10\x00\x10\x03", "must be 15 for 3 components"),
        (b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x00\x00\x10\x01\x01\x11\x00", "16 x 0 pixels"),
    ],
)
def test_a_broken_header_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(JpegError, match=reason):
        jpeg_header(data)


@given(st.binary(max_size=200), st.integers(0, 700))
def test_any_bytes_give_facts_or_a_named_error(tail: bytes, cut: int) -> None:
    data = encode(progressive=True)[:cut] + tail
    for question in (jpeg_header, lambda data: walk_markers(bytes(data))):
        try:
            answer = question(data)
        except JpegError as error:
            assert "\n" not in str(error)
        else:
            assert question(memoryview(data)) == answer
