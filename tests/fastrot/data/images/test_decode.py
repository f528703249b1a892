"""Pixels are compared with Pillow's own decode and exif_transpose, an independent path."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastrot.data.images.decode import (
    DecodeError,
    decode_image,
    measure,
    upright,
)

REFUSED = {
    "broken.png": "damaged PNG",
    "broken_data_stream.png": "damaged PNG",
    "decompression_bomb.gif": "4364696535 pixels",
    "empty.jpg": "an empty file",
    "html_page.jpg": "an HTML or XML page",
    "lfs_pointer.jpg": "git-lfs pointer",
    "png_decompression_dos.png": "damaged PNG",
    "truncated_jpeg.jpg": "(?i)truncated|premature",
    "vips_truncated.jpg": "(?i)truncated|premature",
}
SOUND = [
    *(f"exif_landscape_{i}.jpg" for i in range(1, 9)),
    "exif_portrait_1.jpg",
    "hopper_gray.jpg",
    "icc-after-SOF.jpg",
    "pil_sample_cmyk.jpg",
    *(f"progressive_exif_{i}.jpg" for i in (1, 4, 7)),
]


def pillow_pixels(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the broken EXIF block
        return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (13, 29, 3), dtype=np.uint8)


def test_the_two_lists_cover_every_bad_input(test_data):
    assert {p.name for p in test_data("bad-inputs").iterdir()} == {
        *REFUSED,
        *SOUND,
        "hopper_bad_exif.jpg",
    }


@pytest.mark.parametrize("name", REFUSED)
def test_unsound_file_gives_named_error(test_data, name):
    data = (test_data("bad-inputs") / name).read_bytes()
    with pytest.raises(DecodeError, match=REFUSED[name]) as error:
        decode_image(data, apply_exif=True)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 65


@pytest.mark.parametrize("name", SOUND)
def test_sound_file_gives_pillows_pixels(test_data, name):
    data = (test_data("bad-inputs") / name).read_bytes()
    pixels = decode_image(data, apply_exif=True)
    expected = pillow_pixels(data)
    assert pixels.shape == expected.shape and pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    # Two builds of libjpeg-turbo may differ by rounding; a turn or a channel swap does not.
    assert np.abs(pixels.astype(int) - expected).max() <= 3
    assert measure(data)[:2] == (pixels.shape[1], pixels.shape[0])
    stored = decode_image(data, apply_exif=False)
    assert sorted(stored.shape) == sorted(pixels.shape)


def test_broken_exif_block_counts_as_upright(test_data):
    data = (test_data("bad-inputs") / "hopper_bad_exif.jpg").read_bytes()
    assert measure(data)[2] == 1
    assert measure(data)[:2] == (500, 500)
    # 1,214 bytes of this file's scan are damaged as well, which Pillow does not report.
    try:
        assert np.array_equal(decode_image(data, apply_exif=True), pillow_pixels(data))
    except DecodeError as error:
        assert "1214 extraneous bytes" in str(error)


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_of_jpeg_and_png(noise, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    for kind in ("JPEG", "PNG"):
        data = encoded(Image.fromarray(noise), kind, exif=exif)
        assert measure(data)[2] == turn
        assert np.array_equal(decode_image(data, apply_exif=True).shape, pillow_pixels(data).shape)
        assert (
            np.abs(decode_image(data, apply_exif=True) - pillow_pixels(data).astype(int)).max() <= 3
        )


def chunks(png: bytes) -> list[bytes]:
    """The chunks of a PNG, each with its length and checksum."""
    found, start = [], 8
    while start < len(png):
        stop = start + 12 + int.from_bytes(png[start : start + 4], "big")
        found.append(png[start:stop])
        start = stop
    return found


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("place", ["before the pixels", "behind them"])
def test_orientation_of_a_png_counts_wherever_it_stands(noise, turn, place):
    exif = Image.Exif()
    exif[0x0112] = turn
    pixels = np.random.default_rng(1).integers(0, 256, (130, 290, 3), dtype=np.uint8)
    png = encoded(Image.fromarray(pixels), "PNG", exif=exif)
    block = next(chunk for chunk in chunks(png) if chunk[4:8] == b"eXIf")
    others = [chunk for chunk in chunks(png) if chunk is not block and chunk != block]
    assert [chunk[4:8] for chunk in others] == [b"IHDR", b"IDAT", b"IDAT", b"IEND"]
    at = 1 if place == "before the pixels" else 3
    data = png[:8] + b"".join([*others[:at], block, *others[at:]])
    turned = upright(pixels, turn)
    shape = (turned.shape[1], turned.shape[0])
    assert np.array_equal(decode_image(data, apply_exif=True), turned)
    assert np.array_equal(decode_image(data, apply_exif=False), pixels)
    assert measure(data)[:2] == shape
    assert measure(io.BytesIO(data))[:2] == shape
    assert measure(data) == (*shape, turn)
    assert np.array_equal(pillow_pixels(data), turned)


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_of_a_webp_stands_behind_its_pixels(noise, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(Image.fromarray(noise), "WEBP", lossless=True, exif=exif)
    turned = upright(noise, turn)
    assert np.array_equal(decode_image(data, apply_exif=True), turned)
    assert np.array_equal(pillow_pixels(data), turned)
    assert measure(data)[:2] == (turned.shape[1], turned.shape[0])
    assert measure(data) == (turned.shape[1], turned.shape[0], turn)


@pytest.mark.parametrize("turn", [0, 9, 300])
def test_orientation_out_of_range_counts_as_upright(noise, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    assert measure(encoded(Image.fromarray(noise), "JPEG", exif=exif))[2] == 1


def test_exif_block_cut_anywhere_never_stops_the_decode(noise):
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    seen = set()
    for end in range(len(block) + 1):
        data = encoded(Image.fromarray(noise), "JPEG", exif=block[:end])
        seen.add(measure(data)[2])
        assert decode_image(data, apply_exif=True).size == noise.size
    assert seen == {1, 6}


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG"), ("RGB", "PNG"),
     ("RGB", "WEBP"), ("RGBA", "WEBP"), ("RGB", "BMP"), ("L", "BMP"), ("CMYK", "JPEG"),
     ("L", "JPEG")],
)  # fmt: skip
def test_every_colour_mode_becomes_rgb(noise, mode, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(noise).convert(mode), kind, **options)
    assert np.abs(decode_image(data, apply_exif=True) - pillow_pixels(data).astype(int)).max() <= 3


def test_16_bit_grey_keeps_its_upper_byte():
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    pixels = decode_image(encoded(Image.fromarray(values), "PNG"), apply_exif=True)
    assert np.array_equal(pixels, np.repeat((values >> 8)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pixel_cap_is_checked_before_decoding(noise, kind):
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(DecodeError, match="29 x 13 pixels exceed the cap of 376"):
        decode_image(data, apply_exif=True, max_pixels=13 * 29 - 1)
    decode_image(data, apply_exif=True, max_pixels=13 * 29)


def test_jpeg_header_claiming_60000_pixels_a_side_is_refused(noise):
    data = bytearray(encoded(Image.fromarray(noise), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (60000).to_bytes(2, "big") * 2
    with pytest.raises(DecodeError, match="60000 x 60000"):
        decode_image(bytes(data), apply_exif=True)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_file_cut_anywhere_is_refused(noise, kind):
    data = encoded(Image.fromarray(noise), kind)
    # A PNG that lacks only its end chunk and the checksums of the last row has all its pixels.
    needed = len(data) - (24 if kind == "PNG" else 0)
    for end in range(len(data)):
        try:
            pixels = decode_image(data[:end], apply_exif=True)
        except DecodeError:
            continue
        assert end >= needed
        assert np.array_equal(pixels, decode_image(data, apply_exif=True))


def test_size_from_an_open_file_reads_only_the_header(test_data):
    path = test_data("bad-inputs") / "exif_landscape_6.jpg"
    with open(path, "rb") as file:
        assert measure(file)[:2] == (600, 450)
