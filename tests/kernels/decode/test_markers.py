from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fastrot.kernels.decode.header import JpegError
from fastrot.kernels.decode.markers import announce_files, read_jpeg, walk_jpeg

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


@pytest.fixture(params=["cpp", "reference"])
def each(request, monkeypatch):
    """Runs a test once with each implementation."""
    monkeypatch.setenv("FASTROT_KERNELS", request.param)


def jpeg(mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def exif(turn):
    block = Image.Exif()
    block[0x0112] = turn
    return block


def told(data, kernels, monkeypatch):
    """What an implementation says of bytes: the walk, or the words of the error."""
    monkeypatch.setenv("FASTROT_KERNELS", kernels)
    try:
        return walk_jpeg(data)
    except JpegError as error:
        return str(error)


@pytest.mark.usefixtures("each")
def test_what_the_markers_say():
    data = jpeg(exif=exif(6))
    walk = walk_jpeg(data)
    assert (walk.frame.width, walk.frame.height, walk.frame.components) == (90, 60, 3)
    assert (walk.scans, walk.end) == (1, len(data))
    assert data.count(b"Exif\0\0" + walk.exif) == 1 and walk.exif.startswith((b"II*", b"MM"))
    assert walk_jpeg(data + b"tail\xff\xd9").end == len(data)
    assert walk_jpeg(jpeg("L")).frame.components == 1


@pytest.mark.usefixtures("each")
@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 2}])
def test_scans_and_restarts(options):
    data = jpeg(**options)
    walk = walk_jpeg(data)
    assert walk.end == len(data)
    assert (walk.scans > 1) == ("progressive" in options)


@pytest.mark.usefixtures("each")
def test_every_real_photo_is_walked_to_its_end(test_data):
    for path in sorted(test_data("imagenet-300").iterdir()):
        data = path.read_bytes()
        with Image.open(path) as image:
            walk = walk_jpeg(data)
            assert (walk.frame.width, walk.frame.height) == image.size
            assert walk.end is not None and data[walk.end - 2 : walk.end] == b"\xff\xd9"


@pytest.mark.usefixtures("each")
def test_a_thumbnail_is_not_the_image():
    data = jpeg()
    block = b"Exif\0\0" + data
    inside = data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]
    assert walk_jpeg(inside).end == len(inside)
    assert walk_jpeg(inside[:-2]).end is None


@pytest.mark.usefixtures("each")
@pytest.mark.parametrize("cut", [2, 100, 0.5, -1])
def test_a_file_that_is_cut_short(cut):
    data = jpeg()
    part = data[: int(cut * len(data)) if isinstance(cut, float) else cut]
    try:
        assert walk_jpeg(part).end is None
    except JpegError:
        assert len(part) < 700, "within its header"


@pytest.mark.usefixtures("each")
@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"GIF89a", b"\xff\xd8\xff\xd9"])
def test_what_is_no_image(data):
    with pytest.raises(JpegError):
        walk_jpeg(data)


@pytest.mark.usefixtures("each")
def test_two_frames_are_refused():
    data = jpeg()
    start = data.index(b"\xff\xc0")
    frame = data[start : start + 19]
    with pytest.raises(JpegError, match="two frame headers"):
        walk_jpeg(data[:start] + frame + data[start:])


def test_both_say_the_same_of_altered_files(monkeypatch):
    """Bytes changed, cut out, repeated and swapped, mostly around the markers."""
    rng = np.random.default_rng(0)
    whole = [
        jpeg(exif=exif(3)),
        jpeg(progressive=True),
        jpeg("L", restart_marker_blocks=1),
        jpeg(comment=b"\xff\xd9", icc_profile=b"x" * 70000),
    ]
    outcomes = set()
    for i in range(4000):
        data = bytearray(whole[i % 4])
        places = [at for at in range(len(data) - 1) if data[at] == 0xFF]
        for _ in range(rng.integers(1, 4)):
            near = int(rng.choice(places[:40])) + int(rng.integers(5))
            at = near if rng.random() < 0.7 else int(rng.integers(len(data) + 1))
            kind = rng.integers(4)
            if kind == 0:
                data[at : at + 1] = bytes([rng.choice([0, 1, 0xC0, 0xD8, 0xD9, 0xDA, 0xE1, 0xFF])])
            elif kind == 1:
                del data[at : at + int(rng.integers(1, 9))]
            elif kind == 2:
                data[at:at] = data[at : at + int(rng.integers(1, 300))]
            else:
                del data[at:]
        here = told(bytes(data), "cpp", monkeypatch)
        assert here == told(bytes(data), "reference", monkeypatch)
        outcomes.add(type(here))
    assert len(outcomes) == 2, "sound and unsound ones"


@pytest.mark.usefixtures("each")
def test_a_file_is_read_and_walked(tmp_path):
    path, data = tmp_path / "caf\udce9 x.jpg", jpeg(exif=exif(8))
    path.write_bytes(data)
    for size in (len(data), len(data) - 1, len(data) + 1, 0):  # it may have changed since
        assert read_jpeg(str(path), size) == (data, walk_jpeg(data))
    path.write_bytes(b"")
    with pytest.raises(JpegError, match="empty"):
        read_jpeg(str(path), 0)
    path.write_bytes(data[:-2])
    assert read_jpeg(str(path), len(data) - 2)[1].end is None
    with pytest.raises(FileNotFoundError):
        read_jpeg(str(tmp_path / "none.jpg"), 5)
    announce_files([str(path), str(tmp_path / "none.jpg"), str(tmp_path)])
