"""Strict decoding: Pillow's pixels bit for bit, or an error that says why."""

from __future__ import annotations

import io
import mmap
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastrot.kernels import dispatch
from fastrot.kernels.decode.header import jpeg_header
from fastrot.kernels.decode.op import JpegError, decode_jpeg

needs_cpp = pytest.mark.skipif(
    dispatch.decode_problem() is not None, reason=str(dispatch.decode_problem())
)


@pytest.fixture(params=[pytest.param("cpp", marks=needs_cpp), "reference"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(dispatch.VARIABLE, request.param)
    return request.param


@pytest.fixture
def cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    if problem := dispatch.decode_problem():
        pytest.skip(problem)
    monkeypatch.setenv(dispatch.VARIABLE, "cpp")


def photo(size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """Smooth waves with some noise: every DCT coefficient is in use."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width][..., None]
    waves = 128 + 100 * np.sin(x / 7 + np.arange(channels)) * np.cos(y / 5)
    noise = np.random.default_rng(1).normal(0, 12, (height, width, channels))
    return (waves + noise).clip(0, 255).astype(np.uint8)


def encode(size: tuple[int, int] = (50, 37), mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo(size, len(mode)).squeeze(-1 if mode == "L" else ()), mode).save(
        file, "JPEG", **options
    )
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def three_scans(order: tuple[int, ...], size: tuple[int, int] = (16, 16)) -> bytes:
    """A sequential colour JPEG with one scan for each component named in ``order``."""
    grey = encode(size, "L", optimize=False)
    frame = grey.index(b"\xff\xc0")
    scan = grey.index(b"\xff\xda")
    components = b"".join(bytes([k, 0x11, 0]) for k in (1, 2, 3))
    head = grey[frame + 4 : frame + 9] + b"\x03" + components
    start = b"\xff\xc0" + struct.pack(">H", 2 + len(head)) + head
    tables = grey[frame + 2 + int.from_bytes(grey[frame + 2 : frame + 4], "big") : scan]
    coded = grey[scan + 10 : -2]
    scans = [b"\xff\xda\x00\x08\x01" + bytes([k, 0, 0, 63, 0]) + coded for k in order]
    return grey[:frame] + start + tables + b"".join(scans) + b"\xff\xd9"


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 3), (8, 8), (16, 16), (17, 33), (50, 37)])
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True},
        {"progressive": True, "subsampling": 0, "quality": 100},
        {"quality": 5},
        {"restart_marker_blocks": 1},
        {"optimize": True},
        {"mode": "L"},
        {"mode": "L", "progressive": True},
        {"mode": "CMYK"},
        {"keep_rgb": True},
    ],
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()),
)
def test_pixels_equal_pillow(implementation: str, size: tuple[int, int], options: dict) -> None:
    data = encode(size, **options)
    pixels = decode_jpeg(data)
    assert pixels.shape == (size[1], size[0], 3)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable
    np.testing.assert_array_equal(pixels, by_pillow(data))


@pytest.mark.parametrize(
    ("name", "pattern", "every"), [("imagenette-128", "val/*/*", 20), ("imagenet-300", "*", 6)]
)
def test_real_photos_equal_pillow(cpp: None, test_data, name, pattern, every) -> None:
    paths = sorted(test_data(name).glob(pattern))[::every]
    assert len(paths) >= 50
    for path in paths:
        data = path.read_bytes()
        np.testing.assert_array_equal(decode_jpeg(data), by_pillow(data), err_msg=str(path))


REFUSED = {
    "broken.png": "not a JPEG",
    "broken_data_stream.png": "not a JPEG",
    "decompression_bomb.gif": "not a JPEG",
    "empty.jpg": "empty",
    "hopper_bad_exif.jpg": "extraneous bytes before marker",
    "html_page.jpg": "not a JPEG",
    "lfs_pointer.jpg": "not a JPEG",
    "png_decompression_dos.png": "not a JPEG",
    "truncated_jpeg.jpg": "Premature end",
    "vips_truncated.jpg": "Premature end",
}


def test_bad_inputs_are_refused_or_right(cpp: None, test_data) -> None:
    seen = set()
    for path in sorted(test_data("bad-inputs").iterdir()):
        data = path.read_bytes()
        if path.name in REFUSED:
            seen.add(path.name)
            with pytest.raises(JpegError, match=REFUSED[path.name]):
                decode_jpeg(data)
        else:
            np.testing.assert_array_equal(decode_jpeg(data), by_pillow(data), err_msg=path.name)
    assert seen == set(REFUSED)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}], ids=str)
def test_a_file_cut_anywhere_is_refused(implementation: str, options: dict) -> None:
    data = encode((24, 24), **options)
    for size in range(len(data)):
        with pytest.raises(JpegError):
            decode_jpeg(data[:size])


def test_an_end_marker_after_a_cut_does_not_hide_it(cpp: None) -> None:
    data = encode((64, 64))
    with pytest.raises(JpegError, match="premature end of data segment"):
        decode_jpeg(data[: len(data) // 2] + b"\xff\xd9")


def test_bytes_behind_the_end_are_ignored(implementation: str) -> None:
    data = encode()
    np.testing.assert_array_equal(decode_jpeg(data + b"\0" * 1000), decode_jpeg(data))
    np.testing.assert_array_equal(decode_jpeg(data + data), decode_jpeg(data))


def test_bytes_ahead_of_the_start_are_refused(implementation: str) -> None:
    with pytest.raises(JpegError, match="not a JPEG: it begins with"):
        decode_jpeg(b"\0" + encode())


@pytest.mark.parametrize("stray", [b"\0", b"t", b"text"], ids=["zeros", "letters", "text"])
def test_stray_bytes_between_scan_and_end(cpp: None, stray: bytes) -> None:
    """More than the few that libjpeg reads ahead may be the rest of a scan: zeros like text."""
    data = encode()
    for count in (1, 4):
        few = data[:-2] + (stray * count)[:count] + data[-2:]
        np.testing.assert_array_equal(decode_jpeg(few), decode_jpeg(data))
    for count in (16, 100):
        with pytest.raises(JpegError, match="extraneous bytes before marker 0xd9"):
            decode_jpeg(data[:-2] + (stray * count)[:count] + data[-2:])


@pytest.mark.parametrize("stray", [b"\0", b"text", b"\xff\xd9", b"\xff\xd8\xff"])
def test_stray_bytes_behind_the_end_touch_no_pixel(implementation: str, stray: bytes) -> None:
    data = encode()
    np.testing.assert_array_equal(decode_jpeg(data + stray * 50), decode_jpeg(data))


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(body)) + body


def with_spectral_selection(three: bytes) -> bytes:
    data = encode()
    scan = data.index(b"\xff\xda")
    end = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    return data[: end - 3] + three + data[end:]


def with_adobe_transform(number: int, mode: str = "RGB") -> bytes:
    data = encode(mode=mode)
    stop = 4 + int.from_bytes(data[4:6], "big")  # of the first segment, JFIF's or Adobe's
    return data[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([number])) + data[stop:]


SOUND = {
    "spectral selection 0 0": with_spectral_selection(b"\0\0\0"),
    "spectral selection 1 5, bits 2 3": with_spectral_selection(b"\1\5\x23"),
    "spectral selection 0 255": with_spectral_selection(b"\0\xff\0"),
    "JFIF 2.1": encode().replace(b"JFIF\0\1", b"JFIF\0\2"),
    "JFIF 0.0": encode().replace(b"JFIF\0\1\1", b"JFIF\0\0\0"),
    "ICC profile without its parts": encode()[:2]
    + segment(0xE2, b"ICC_PROFILE\0\5\2what") + encode()[2:],
}  # fmt: skip


@pytest.mark.parametrize("data", SOUND.values(), ids=SOUND.keys())
def test_a_warning_that_touches_no_pixel_is_none(implementation: str, data: bytes) -> None:
    np.testing.assert_array_equal(decode_jpeg(data), decode_jpeg(encode()))
    np.testing.assert_array_equal(decode_jpeg(data), by_pillow(data))


def doubtful() -> dict[str, tuple[bytes, str]]:
    """Of each warning after which pixels may be wrong, a file; and libjpeg's words."""
    plain, markers = encode(), encode(restart_marker_blocks=2)
    gradual = encode(progressive=True)
    second = markers.index(b"\xff\xd1")
    last = gradual.rindex(b"\xff\xda")
    middle = len(plain) * 2 // 3
    return {
        "ADOBE_XFORM": (with_adobe_transform(2), "Unknown Adobe color transform code 2"),
        "ADOBE_XFORM, CMYK": (with_adobe_transform(1, "CMYK"), "Unknown Adobe color transform"),
        "BOGUS_PROGRESSION": (gradual[:-2] + gradual[last:], "Inconsistent progression sequence"),
        "EXTRANEOUS_DATA": (markers[:second] + markers[second + 2 :], "extraneous bytes before"),
        "HIT_MARKER": (plain[:middle] + b"\xff\xd9", "premature end of data segment"),
        "HUFF_BAD_CODE": (
            plain[:middle] + b"\xff\0" * 40 + plain[middle + 80 :],
            "bad Huffman code|premature end|extraneous bytes",
        ),
        "JPEG_EOF": (plain[:middle], "Premature end of JPEG file"),
        "MUST_RESYNC": (
            markers[:second] + b"\xff\xd5" + markers[second + 2 :],
            "found marker 0xd5 instead of RST1",
        ),
        "a progressive frame called sequential": (
            gradual.replace(b"\xff\xc2", b"\xff\xc0"),
            "premature end of data segment|Huffman",
        ),
    }


@pytest.mark.parametrize(("data", "words"), doubtful().values(), ids=doubtful().keys())
def test_a_warning_after_which_pixels_may_be_wrong_is_an_error(cpp, data, words) -> None:
    with pytest.raises(JpegError, match=words):
        decode_jpeg(data)


@pytest.mark.parametrize("denominator", [2, 4, 8])
@pytest.mark.parametrize("size", [(64, 48), (50, 37), (19, 90)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_shrinking_gives_pillows_draft(implementation, size, mode, denominator) -> None:
    data = encode(size, mode)
    pixels = decode_jpeg(data, denominator=denominator)
    assert pixels.shape == (-(-size[1] // denominator), -(-size[0] // denominator), 3)
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (size[0] // denominator, size[1] // denominator))
        np.testing.assert_array_equal(pixels, np.array(image.convert("RGB")))
    with pytest.raises(JpegError, match="exceed the cap"):
        decode_jpeg(data, denominator=denominator, max_pixels=size[0] * size[1] - 1)


@pytest.mark.parametrize("denominator", [2, 8])
def test_shrinking_is_as_strict(cpp: None, denominator: int) -> None:
    data = encode((64, 64))
    for size in range(len(data)):
        with pytest.raises(JpegError):
            decode_jpeg(data[:size], denominator=denominator)


def with_frame(marker: int = 0xC0, precision: int = 8) -> bytes:
    data = bytearray(encode())
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4] = marker, precision
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (with_frame(0xC3), "lossless JPEG is not supported"),
        (with_frame(0xC9), "arithmetic-coded JPEG is not supported"),
        (with_frame(0xC5), "hierarchical JPEG is not supported"),
        (with_frame(0xC1, precision=12), "12 bits per sample are not supported"),
    ],
)
def test_rare_kinds_are_named(implementation: str, data: bytes, reason: str) -> None:
    with pytest.raises(JpegError, match=reason):
        decode_jpeg(data)


def test_too_many_pixels_are_refused_by_the_header(implementation: str) -> None:
    data = bytearray(encode())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(JpegError, match="65535 x 65535 pixels exceed the cap of 67108864"):
        decode_jpeg(bytes(data))
    with pytest.raises(JpegError, match="50 x 37 pixels exceed the cap of 1849"):
        decode_jpeg(encode(), max_pixels=1849)
    assert decode_jpeg(encode(), max_pixels=1850).shape == (37, 50, 3)


def test_the_extension_checks_the_cap_itself(cpp: None) -> None:
    from fastrot.kernels import _native

    with pytest.raises(ValueError, match="more pixels than the cap"):
        _native.decode_jpeg(encode(), 1849, 1)


def test_scans_of_their_own_for_each_component(implementation: str) -> None:
    data = three_scans((1, 2, 3))
    np.testing.assert_array_equal(decode_jpeg(data), by_pillow(data))


def test_a_component_without_a_scan_is_refused(cpp: None) -> None:
    with pytest.raises(JpegError, match="a colour component has no scan"):
        decode_jpeg(three_scans((1, 2)))


def test_endless_scans_are_refused(implementation: str) -> None:
    with pytest.raises(JpegError, match="more than 100 scans"):
        decode_jpeg(three_scans((1, 2, 3) * 34))


def test_any_contiguous_bytes_are_taken(implementation: str, tmp_path: Path) -> None:
    data = encode()
    expected = decode_jpeg(data)
    path = tmp_path / "image.jpg"
    path.write_bytes(b"head" + data)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        np.testing.assert_array_equal(decode_jpeg(memoryview(mapped)[4:]), expected)
    np.testing.assert_array_equal(decode_jpeg(memoryview(bytearray(data))), expected)


def test_threads_decode_side_by_side(implementation: str) -> None:
    files = [encode((40 + k, 30), progressive=k % 2 == 0) for k in range(8)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(decode_jpeg, files * 10))
    for data, pixels in zip(files * 10, results, strict=True):
        np.testing.assert_array_equal(pixels, by_pillow(data))


def test_python_runs_on_while_decoding(cpp: None) -> None:
    file = io.BytesIO()
    Image.fromarray(np.tile(photo((200, 150)), (20, 20, 1))).save(file, "JPEG", quality=95)
    data = file.getvalue()
    decoding = threading.Thread(target=decode_jpeg, args=(data,))
    decoding.start()
    turns = 0
    while decoding.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 5


WORKER = """
import io, resource, sys
import numpy as np
from PIL import Image
from fastrot.kernels.decode.op import JpegError, decode_jpeg

resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
assert "torch" not in sys.modules
pipe_in, pipe_out = sys.stdin.buffer, sys.stdout.buffer
while size := pipe_in.read(4):
    data = pipe_in.read(int.from_bytes(size, "big"))
    try:
        pixels = decode_jpeg(data, max_pixels=1 << 20)
    except JpegError:
        answer = b"refused"
    else:
        with Image.open(io.BytesIO(data)) as image:
            same = np.array_equal(pixels, np.array(image.convert("RGB")))
        answer = b"right" if same else b"wrong"
    pipe_out.write(answer.ljust(8))
    pipe_out.flush()
"""


@contextmanager
def worker(implementation: str) -> Iterator[Callable[[bytes], bytes]]:
    """A process that decodes what it is sent, so that a crash is a failure of the test."""
    environment = {**os.environ, dispatch.VARIABLE: implementation, "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        pipe_in, pipe_out = process.stdin, process.stdout

        def ask(data: bytes) -> bytes:
            pipe_in.write(len(data).to_bytes(4, "big") + data)
            pipe_in.flush()
            return pipe_out.read(8).strip()

        yield ask
        pipe_in.close()
        assert process.wait(120) == 0


SEEDS = [
    encode((40, 24)),
    encode((24, 40), progressive=True),
    encode((16, 16), "L"),
    encode((16, 24), "CMYK"),
    encode((32, 32), restart_marker_blocks=2, subsampling=0),
    three_scans((1, 2, 3)),
]
FLIPS = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=6)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A small JPEG with a few bytes changed; some are also cut short."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for place, value in draw(FLIPS):
        data[place % len(data)] = value
    return bytes(data[: draw(st.integers(1, 4 * len(data)))])


@pytest.mark.parametrize(
    ("implementation", "cases"), [pytest.param("cpp", 2000, marks=needs_cpp), ("reference", 300)]
)
def test_damaged_bytes_give_right_pixels_or_an_error(implementation: str, cases: int) -> None:
    with worker(implementation) as ask:

        @settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck))
        @given(damaged())
        def check(data: bytes) -> None:
            assert ask(data) in (b"right", b"refused")

        check()


def test_header_and_decoder_agree_on_the_size() -> None:
    for seed in SEEDS:
        header = jpeg_header(seed)
        assert decode_jpeg(seed).shape == (header.height, header.width, 3)
