from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastrot.data.beton.reader import check_jpeg
from fastrot.data.images import decode
from fastrot.data.images.decode import DecodeError, decode_image, upright
from fastrot.data.prepare import encode
from fastrot.data.prepare.encode import SHRINK_FILTER, Encoding, encode_image, why_not_kept
from fastrot.kernels.decode.op import decode_jpeg


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
    return decode_image(payload.image.data, apply_exif=False, max_pixels=2**28)


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
        (encoded(smooth(40, 30)) + bytes(40), "bytes after the end of the image"),
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


# Images beyond the cap


@pytest.fixture
def small_cap(monkeypatch) -> int:
    """As if 400 x 300 pixels were many: the rules are the same."""
    for module in (decode, encode):
        monkeypatch.setattr(module, "MAX_PIXELS", 10_000)
    monkeypatch.setattr(decode, "MAX_SHRUNK_PIXELS", 150_000)
    return 10_000


@pytest.mark.parametrize(
    ("size", "max_side", "denominator"),
    [((100, 100), 10, 1), ((400, 300), 12, 8), ((400, 300), 50, 4), ((400, 300), 60, 1),
     ((100, 200), 25, 2), ((300, 400), 25, 4), ((400, 300), 400, 1)],
)  # fmt: skip
def test_a_large_jpeg_is_shrunk_while_it_is_decoded(small_cap, size, max_side, denominator):
    data = encoded(smooth(*size), exif=exif(6))
    encoding = Encoding(max_side=max_side, quality=100, max_pixels=150_000)
    pixels = decode_image(data, apply_exif=True, max_pixels=150_000, max_side=max_side)
    shrunk = upright(decode_jpeg(data, denominator=denominator), 6)
    assert np.array_equal(pixels, shrunk)
    # Four times as many pixels a side are left for the filter, twice where that is too many.
    assert denominator == 1 or max(pixels.shape) >= 2 * max_side
    ours = pixels_of(encode_image(data, encoding)).astype(int)
    whole = Image.fromarray(decode_image(data, apply_exif=True, max_pixels=150_000))
    wanted = np.asarray(whole.resize(ours.shape[1::-1], SHRINK_FILTER))
    assert max(ours.shape) == min(max_side, max(size))
    assert np.abs(ours - wanted).mean() < 4


def test_a_large_jpeg_needs_no_option_but_max_side(small_cap):
    data = encoded(smooth(400, 300))
    assert pixels_of(encode_image(data, Encoding(max_side=50))).shape == (38, 50, 3)
    both = r"--max-side 500, which shrinks it, or with --max-pixels 120000$"
    for encoding in (Encoding(), Encoding(copy=True)):
        with pytest.raises(DecodeError, match=rf"400 x 300 pixels exceed the cap of 10000.*{both}"):
            encode_image(data, encoding)
    with pytest.raises(DecodeError, match=both):
        encode_image(data, Encoding(max_side=300))
    with pytest.raises(DecodeError, match=r"the cap of 100000 pixels .* --max-pixels 120000$"):
        encode_image(data, Encoding(max_side=50, max_pixels=100_000))
    larger = encoded(smooth(400, 400))
    with pytest.raises(DecodeError, match=r"cap of 150000 .* prepare takes it with --max-pixels"):
        encode_image(larger, Encoding(max_side=50))


def test_what_is_no_jpeg_is_decoded_whole(small_cap):
    data = encoded(smooth(400, 300), "PNG")
    with pytest.raises(DecodeError, match=r"prepare takes it with --max-pixels 120000$"):
        encode_image(data, Encoding(max_side=50))
    payload = encode_image(data, Encoding(max_side=50, max_pixels=120_000))
    assert pixels_of(payload).shape == (38, 50, 3)


def test_what_libjpeg_does_not_shrink_is_decoded_whole(small_cap):
    """A sampling of colours that few encoders write: one scan each, so that their order is free."""
    grey = encoded(smooth(400, 300), mode="L")
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    parts = b"".join(bytes([k, 0x21, 0]) for k in (1, 2, 3))
    scans = [grey[scan : scan + 5] + bytes([k]) + grey[scan + 6 : -2] for k in (1, 2, 3)]
    data = (
        grey[:frame] + b"\xff\xc0\0\x11" + grey[frame + 4 : frame + 9] + b"\3" + parts
        + grey[frame + 13 : scan] + b"".join(scans) + b"\xff\xd9"
    )  # fmt: skip
    whole = decode_image(data, apply_exif=True, max_pixels=120_000)
    with pytest.raises(DecodeError, match="unusual sampling"):
        decode_image(data, apply_exif=True, max_side=50)
    assert np.array_equal(
        decode_image(data, apply_exif=True, max_pixels=120_000, max_side=50), whole
    )


def test_a_cap_that_nobody_set_is_not_told():
    """Conversions that an earlier version began or finished are resumed."""
    assert Encoding().settings() == {"copy": False, "max_side": None, "quality": None}
    assert Encoding(max_pixels=9).settings()["max_pixels"] == 9


def test_a_beton_holds_no_more_than_its_readers_take(monkeypatch):
    monkeypatch.setattr("fastrot.data.prepare.encode.MAX_STORED_PIXELS", 1000)
    for kind in ("PNG", "JPEG"):
        for copy in (False, True):
            with pytest.raises(DecodeError, match=r"1200 pixels exceed the 1000.*give --max-side"):
                encode_image(encoded(smooth(40, 30), kind), Encoding(copy=copy))


def test_side_beyond_jpegs_limit_is_refused():
    with pytest.raises(DecodeError, match="65501 pixels exceeds"):
        encode_image(encoded(smooth(65501, 2), "PNG"), Encoding())
