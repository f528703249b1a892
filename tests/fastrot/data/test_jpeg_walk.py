from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fastrot.data.jpeg_walk import walk_jpeg
from fastrot.kernels.decode.header import JpegError

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def jpeg(mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def exif(turn):
    block = Image.Exif()
    block[0x0112] = turn
    return block


def test_what_the_markers_say():
    data = jpeg(exif=exif(6))
    walk = walk_jpeg(data)
    assert (walk.frame.width, walk.frame.height, walk.frame.components) == (90, 60, 3)
    assert (walk.orientation, walk.scans, walk.end) == (6, 1, len(data))
    assert walk_jpeg(data + b"tail\xff\xd9").end == len(data)
    assert walk_jpeg(jpeg("L")).frame.components == 1


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 2}])
def test_scans_and_restarts(options):
    data = jpeg(**options)
    walk = walk_jpeg(data)
    assert walk.end == len(data)
    assert (walk.scans > 1) == ("progressive" in options)


def test_every_real_photo_is_walked_to_its_end(test_data):
    for path in sorted(test_data("imagenet-300").iterdir()):
        data = path.read_bytes()
        with Image.open(path) as image:
            walk = walk_jpeg(data)
            assert (walk.frame.width, walk.frame.height) == image.size
            assert walk.end is not None and data[walk.end - 2 : walk.end] == b"\xff\xd9"


def test_a_thumbnail_is_not_the_image():
    data = jpeg()
    block = b"Exif\0\0" + data
    inside = data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]
    assert walk_jpeg(inside).end == len(inside)
    assert walk_jpeg(inside[:-2]).end is None


@pytest.mark.parametrize("cut", [2, 100, 0.5, -1])
def test_a_file_that_is_cut_short(cut):
    data = jpeg()
    part = data[: int(cut * len(data)) if isinstance(cut, float) else cut]
    try:
        assert walk_jpeg(part).end is None
    except JpegError:
        assert len(part) < 700, "within its header"


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"GIF89a", b"\xff\xd8\xff\xd9"])
def test_what_is_no_image(data):
    with pytest.raises(JpegError):
        walk_jpeg(data)


def test_two_frames_are_refused():
    data = jpeg()
    start = data.index(b"\xff\xc0")
    frame = data[start : start + 19]
    with pytest.raises(JpegError, match="two frame headers"):
        walk_jpeg(data[:start] + frame + data[start:])
