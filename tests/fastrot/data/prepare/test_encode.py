from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastrot.data.beton.reader import check_jpeg
from fastrot.data.images.decode import DecodeError, decode_image
from fastrot.data.prepare.encode import Encoding, encode_image, why_not_kept


def smooth(width, height):
    y, x = np.mgrid[0:height, 0:width]
    channels = (255 * x / width, 255 * y / height, 128 + 0 * x)
    return np.stack(channels, axis=2).astype(np.uint8)


def encoded(pixels, kind="JPEG", mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def exif(turn):
    block = Image.Exif()
    block[0x0112] = turn
    return block


def pixels_of(payload):
    if isinstance(payload.image, np.ndarray):
        return payload.image
    assert check_jpeg(payload.image.data) == payload.image[1:]
    return decode_image(payload.image.data, apply_exif=False)


def test_copy_keeps_the_bytes_of_an_ordinary_jpeg():
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"exif": exif(1)}):
        data = encoded(smooth(40, 30), **options)
        payload = encode_image(data, Encoding(copy=True))
        assert (payload.image.data, payload.reencoded, payload.nbytes) == (data, None, len(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(smooth(40, 30), "PNG"), "not a JPEG"),
        (encoded(smooth(40, 30), mode="L"), "grey"),
        (encoded(smooth(40, 30), mode="CMYK"), "CMYK"),
        (encoded(smooth(40, 30), exif=exif(6)), "EXIF orientation"),
        (encoded(smooth(40, 30)) + b"tail", "bytes after the end of the image"),
    ],
)
def test_copy_reencodes_what_a_beton_cannot_hold(data, reason):
    payload = encode_image(data, Encoding(copy=True))
    assert payload.reencoded == reason
    assert why_not_kept(payload.image.data) is None
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.abs(pixels_of(payload) - upright.astype(int)).mean() < 3


def test_exif_orientation_is_applied_when_reencoding():
    payload = encode_image(encoded(smooth(40, 30), exif=exif(6)), Encoding())
    assert pixels_of(payload).shape == (40, 30, 3)
    assert why_not_kept(payload.image.data) is None


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [((400, 100), 200, (200, 50)), ((100, 400), 200, (50, 200)), ((100, 80), 200, (100, 80)),
     ((1000, 1), 100, (100, 1)), ((333, 250), 100, (100, 75))],
)  # fmt: skip
def test_max_side_shrinks_the_longest_side_and_never_enlarges(size, max_side, expected):
    payload = encode_image(encoded(smooth(*size), "PNG"), Encoding(max_side=max_side))
    assert pixels_of(payload).shape == (expected[1], expected[0], 3)


def test_shrinking_is_antialiased():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    payload = encode_image(stripes, Encoding(max_side=64))
    inner = pixels_of(payload)[8:-8, 8:-8].astype(int)
    assert np.abs(inner - 127.5).max() < 4


def test_quality_governs_the_size():
    data = encoded(smooth(200, 200), "PNG")
    sizes = [encode_image(data, Encoding(quality=q)).nbytes for q in (10, 50, 90, 100)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert encode_image(data, Encoding()).nbytes == sizes[2]


def test_pixels_stay_raw_unless_a_quality_is_asked_for():
    pixels = smooth(32, 32)
    raw = encode_image(pixels, Encoding())
    assert np.array_equal(raw.image, pixels) and raw.nbytes == 3 * 32 * 32
    assert encode_image(pixels, Encoding(quality=90)).image.data[:2] == b"\xff\xd8"


def test_damaged_source_is_refused_also_with_copy():
    data = encoded(smooth(400, 300))
    for encoding in (Encoding(), Encoding(copy=True)):
        with pytest.raises(DecodeError):
            encode_image(data[: len(data) // 2], encoding)


def test_side_beyond_jpegs_limit_is_refused():
    with pytest.raises(DecodeError, match="65501 pixels exceeds"):
        encode_image(encoded(smooth(65501, 2), "PNG"), Encoding())
