"""GIF, TIFF, AVIF and PNM: Pillow's pixels, or an error; see ``test_decode.py`` for the others."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastrot.data.images.decode import DecodeError, decode_image, measure, upright

RNG = np.random.default_rng(3)
WIDTH, HEIGHT = 29, 13
NOISE = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
PHOTO = np.asarray(Image.fromarray(NOISE).resize((64, 40), Image.Resampling.BICUBIC))
GREY_16 = RNG.integers(0, 2**16, (HEIGHT, WIDTH), dtype=np.uint16)


def encoded(pixels, kind: str, mode: str | None = None, **options: object) -> bytes:
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, kind, **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def tiff(tags: Iterable[tuple[int, int, int]], pixels: bytes = b"", order: str = "<") -> bytes:
    """A TIFF of one strip, which stands ahead of the directory; tags are (tag, type, value)."""
    entries = [*tags, (273, 4, 8), (279, 4, len(pixels))]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(pixels))
    body = struct.pack(order + "H", len(entries))
    for tag, kind, value in sorted(entries):
        packed = struct.pack(
            order + {3: "HH", 4: "I"}[kind], *((value, 0) if kind == 3 else [value])
        )
        body += struct.pack(order + "HHI", tag, kind, 1) + packed
    return head + pixels + body + bytes(4)


def grey_tiff(pixels: np.ndarray, **tags: int) -> bytes:
    names = {"bits": 258, "photometric": 262, "format": 339, "subfile": 254, "orientation": 274}
    values = {"bits": 8 * pixels.itemsize, "photometric": 1, **tags}
    height, width = pixels.shape
    return tiff(
        [(256, 3, width), (257, 3, height), (259, 3, 1), (277, 3, 1), (278, 3, height)]
        + [(names[name], 3, value) for name, value in values.items()],
        pixels.tobytes(),
    )


COMPRESSIONS = ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd"]
LOSSLESS = {
    **{f"tiff-{c}-{m}": encoded(NOISE, "TIFF", m, compression=c)
       for c in COMPRESSIONS for m in ("RGB", "L", "P", "CMYK", "1", "RGBA")},
    "tiff-fax": encoded(NOISE, "TIFF", "1", compression="group4"),
    "tiff-16": encoded(GREY_16, "TIFF", compression="raw"),
    "tiff-16-lzw": encoded(GREY_16, "TIFF", compression="tiff_lzw"),
    "tiff-big": encoded(NOISE, "TIFF", big_tiff=True),
    "gif": encoded(NOISE, "GIF"),
    "gif-grey": encoded(NOISE, "GIF", "L"),
    "ppm": encoded(NOISE, "PPM"),
    "pgm": encoded(NOISE, "PPM", "L"),
    "pgm-16": encoded(GREY_16, "PPM"),
    "pbm": encoded(NOISE, "PPM", "1"),
    "ppm-text": b"P3 2 2 255\n# a comment\n1 2 3 40 50 60\n255 0 9 7 7 7\n",
    "pbm-text": b"P1\n3 2\n101\n0 1 0\n",
}  # fmt: skip
LOSSY = {
    "tiff-jpeg": encoded(PHOTO, "TIFF", compression="jpeg"),
    "tiff-jpeg-grey": encoded(PHOTO, "TIFF", "L", compression="jpeg"),
    "avif": encoded(PHOTO, "AVIF"),
    "avif-444": encoded(PHOTO, "AVIF", quality=100, subsampling="4:4:4"),
    "avif-transparent": encoded(PHOTO, "AVIF", "RGBA"),
}
ALL = LOSSLESS | LOSSY


def each(files):
    return pytest.mark.parametrize("data", files.values(), ids=files.keys())


@each({name: data for name, data in ALL.items() if "16" not in name})
def test_pixels_are_pillows(data):
    pixels = decode_image(data, apply_exif=True)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert np.array_equal(pixels, by_pillow(data))
    assert measure(data) == (pixels.shape[1], pixels.shape[0], 1)


@each(ALL)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_cut_anywhere_is_refused_or_whole(data, capfd):
    whole = decode_image(data, apply_exif=True)
    for end in {*range(0, len(data), max(1, len(data) // 60)), len(data) - 1, len(data) - 2}:
        try:
            pixels = decode_image(data[:end], apply_exif=True)
        except DecodeError as error:
            assert "\n" not in error.reason and error.reason
        else:  # what lies behind the pixels, or is not needed for them
            assert np.array_equal(pixels, whole), end
    assert capfd.readouterr().err == "", "the reason is told once"


@pytest.mark.parametrize(
    ("mode", "compression"), [("RGB", "tiff_adobe_deflate"), ("RGB", "lzma"), ("1", "group4")]
)
def test_damage_that_the_format_can_notice_is_refused(mode, compression, capfd):
    rings = (np.hypot(*np.mgrid[-90:90, -90:90]) % 32 * 8).astype(np.uint8)
    pixels = np.repeat(rings[:, :, None], 3, axis=2)
    data = bytearray(encoded(pixels, "TIFF", mode, compression=compression))
    decode_image(data, apply_exif=True)
    places = np.linspace(len(data) * 0.3, len(data) * 0.7, 40).astype(int).tolist()
    refused = 0
    for place in places:
        data[place] ^= 0x10
        try:
            decode_image(data, apply_exif=True)
        except DecodeError:
            refused += 1
        data[place] ^= 0x10
    assert refused >= 0.8 * len(places)
    assert capfd.readouterr().err == ""


def test_missing_pixels_of_a_jpeg_in_a_tiff_are_never_grey():
    """libjpeg warns, libtiff drops it, and Pillow shows grey."""
    data = bytearray(encoded(PHOTO, "TIFF", compression="jpeg", quality=95))
    with Image.open(io.BytesIO(data)) as image:
        (offset,), (size,) = image.tag_v2[273], image.tag_v2[279]
    data[offset + size // 2 : offset + size // 2 + 2] = b"\xff\xd9"
    assert by_pillow(bytes(data)).shape == PHOTO.shape
    with pytest.raises(DecodeError, match=r"damaged TIFF: libjpeg: .*premature end"):
        decode_image(data, apply_exif=True)


@each({name: data for name, data in ALL.items() if name.startswith("tiff")})
@pytest.mark.filterwarnings("ignore::UserWarning")  # pytest lifts the filter of our own
def test_any_bytes_of_a_tiff_give_pixels_or_one_reason(data, capfd):
    for place in range(0, len(data), max(1, len(data) // 150)):
        for value in (0, 255):
            changed = bytearray(data)
            changed[place] = value
            try:
                decode_image(changed, apply_exif=True, max_pixels=2**20)
            except DecodeError as error:
                assert "\n" not in error.reason
    assert capfd.readouterr().err == ""


def test_threads_hear_of_their_own_damage_alone(capfd):
    rings = (np.hypot(*np.mgrid[-90:90, -90:90]) % 32 * 8).astype(np.uint8)
    sound = encoded(rings, "TIFF", "1", compression="group4")
    damaged = bytearray(sound)
    damaged[len(sound) // 3] ^= 0x10
    pixels = by_pillow(sound)

    def refused(data) -> bool:
        try:
            return not np.array_equal(decode_image(data, apply_exif=True), pixels)
        except DecodeError:
            return True

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(refused, [sound, bytes(damaged)] * 100)) == [False, True] * 100
    assert capfd.readouterr().err == ""


# Orientation


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"big_tiff": True}),
     ("AVIF", {"quality": 100, "subsampling": "4:4:4"})],
)  # fmt: skip
def test_orientation_is_the_same_in_size_and_pixels(kind, options, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(NOISE, kind, exif=exif, **options)
    stored, turned = decode_image(data, apply_exif=False), decode_image(data, apply_exif=True)
    assert stored.shape == NOISE.shape
    assert np.abs(stored.astype(int) - NOISE).max() <= (4 if kind == "AVIF" else 0)
    assert np.array_equal(turned, upright(stored, turn))
    assert np.array_equal(turned, by_pillow(data))
    shape = (turned.shape[1], turned.shape[0])
    assert measure(data) == measure(io.BytesIO(data)) == (*shape, turn)


def test_exif_does_not_turn_an_avif():
    """Its own boxes do (MIAF, 7.3.6.7), and browsers heed nothing else."""
    exif = Image.Exif()
    exif[0x0213] = 6  # of the orientation Pillow makes boxes
    data = encoded(NOISE, "AVIF", exif=exif)
    for order in "<>":
        data = data.replace(
            struct.pack(order + "HH", 0x0213, 3), struct.pack(order + "HH", 0x0112, 3)
        )
    assert any(struct.pack(order + "HHIH", 0x0112, 3, 1, 6) in data for order in "<>")
    assert measure(data) == (WIDTH, HEIGHT, 1)
    assert np.array_equal(decode_image(data, apply_exif=True), by_pillow(data))


@pytest.mark.parametrize("turn", [0, 9, 300])
def test_orientation_of_a_tiff_out_of_range_counts_as_upright(turn):
    pixels = NOISE[:, :, 0]
    data = grey_tiff(pixels, orientation=turn)
    assert measure(data) == (WIDTH, HEIGHT, 1)
    assert np.array_equal(decode_image(data, apply_exif=True)[:, :, 1], pixels)


# Several pictures, transparency


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP", "AVIF"])
def test_of_several_pictures_the_first_counts(kind):
    first = np.zeros((16, 16, 3), np.uint8)
    first[4:] = (250, 0, 0)
    others = [Image.fromarray(first[::-1].copy()), Image.new("RGB", (16, 16), (0, 0, 250))]
    data = encoded(first, kind, save_all=True, append_images=others)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    pixels = decode_image(data, apply_exif=True)
    assert np.abs(pixels.astype(int) - first).mean() < 6
    assert np.array_equal(pixels, by_pillow(data))


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_a_transparent_palette_shows_what_is_under_it(kind):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([9, 9, 9, 200, 100, 50, 1, 2, 3])
    file = io.BytesIO()
    image.save(file, kind, transparency=1)
    pixels = decode_image(file.getvalue(), apply_exif=True)
    assert np.array_equal(pixels, np.full((8, 8, 3), (200, 100, 50)))


# Samples of other sizes


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_16_bits_of_a_tiff_are_cut_to_the_upper_8(order, compression):
    image = Image.fromarray(GREY_16.astype(order))
    file = io.BytesIO()
    image.save(file, "TIFF", compression=compression)
    pixels = decode_image(file.getvalue(), apply_exif=True)
    assert np.array_equal(pixels, np.repeat((GREY_16 >> 8)[:, :, None], 3, axis=2))


def test_16_bits_of_colour_in_a_tiff_are_cut_to_the_upper_8():
    colours = RNG.integers(0, 2**16, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    data = tiff(
        [(256, 3, WIDTH), (257, 3, HEIGHT), (258, 3, 16), (259, 3, 1), (262, 3, 2), (277, 3, 3),
         (278, 3, HEIGHT)],
        colours.tobytes(),
    )  # fmt: skip
    assert np.array_equal(decode_image(data, apply_exif=True), colours >> 8)


def test_zero_may_be_white_in_a_tiff():
    """Pillow inverts 8 bits and leaves 16 as they are."""
    for pixels in (NOISE[:, :, 0].copy(), GREY_16):
        shown = decode_image(grey_tiff(pixels, photometric=0), apply_exif=True)[:, :, 2]
        upper = (pixels >> (8 * pixels.itemsize - 8)).astype(np.uint8)
        assert np.array_equal(shown, 255 - upper)


def test_12_bits_of_a_tiff_are_not_taken_for_16():
    values = np.array([0, 0xFFF, 0x123, 0x800], np.uint16)  # two in three bytes
    packed = bytes([0x00, 0x0F, 0xFF, 0x12, 0x38, 0x00])
    data = tiff(
        [(256, 3, 4), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (277, 3, 1),
         (278, 3, 1)],
        packed,
    )  # fmt: skip
    assert decode_image(data, apply_exif=True)[0, :, 0].tolist() == (values >> 4).tolist()


@pytest.mark.parametrize(
    ("dtype", "code", "words"),
    [("float32", 3, "floating-point samples of 32 bits"), ("int32", 2, "signed samples of 32"),
     ("uint32", 1, "samples of 32 bits"), ("int16", 2, "signed samples of 16 bits")],
)  # fmt: skip
def test_samples_without_a_known_white_are_refused(dtype, code, words):
    data = grey_tiff(np.ones((HEIGHT, WIDTH), dtype), format=code)
    with pytest.raises(DecodeError, match=words + ".*save it with 8 or 16 bits"):
        decode_image(data, apply_exif=True)


def pnm(kind: int, maxval: int, values: np.ndarray) -> bytes:
    height, width = values.shape[:2]
    head = f"P{kind}\n# made by hand\n{width} {height}\n{maxval}\n".encode()
    if kind in (2, 3):
        return head + " ".join(map(str, values.reshape(-1).tolist())).encode() + b"\n"
    return head + values.astype(">u2" if maxval > 255 else "u1").tobytes()


@pytest.mark.parametrize("kind", [2, 3, 5, 6])
@pytest.mark.parametrize("maxval", [1, 15, 100, 255, 256, 1000, 4095, 65535])
def test_samples_of_a_pnm_are_scaled_by_its_largest_value(kind, maxval):
    shape = (HEIGHT, WIDTH, 3) if kind in (3, 6) else (HEIGHT, WIDTH)
    values = RNG.integers(0, maxval + 1, shape)
    values.reshape(-1)[:2] = 0, maxval
    pixels = decode_image(pnm(kind, maxval, values), apply_exif=True)
    exact = 255 * values / maxval
    shown = pixels if values.ndim == 3 else pixels[:, :, 0]
    assert np.abs(shown - exact).max() <= 1
    assert shown.min() == 0 and shown.max() == 255


def test_an_unusual_pnm_is_refused():
    for data in (b"P5 3 3 0\n" + bytes(9), b"P5 3 3 70000\n" + bytes(18), b"P6 -3 -3 255\n",
                 b"P6\n3 x 255\n", b"P2 1 1 9\n10\n", b"P6 ", b"P5 0 3 255\n"):  # fmt: skip
        with pytest.raises(DecodeError, match="damaged PNM"):
            decode_image(data, apply_exif=True)


# How the pixels of a TIFF lie


def blocks_tiff(tags: dict[int, list[int]], blocks: list[bytes], places: int) -> bytes:
    """A TIFF of several strips (their places: tag 273) or tiles (tag 324)."""
    ends = np.cumsum([8] + [len(block) for block in blocks]).tolist()
    sizes = places + (6 if places == 273 else 1)
    tags = {**tags, places: ends[:-1], sizes: [len(block) for block in blocks]}
    directory, values = struct.pack("<H", len(tags)), b""
    tail = ends[-1] + 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        kind, code = (4, "I") if tag in (places, sizes) else (3, "H")
        packed = struct.pack(f"<{len(numbers)}{code}", *numbers)
        if len(packed) > 4:
            values, packed = values + packed, struct.pack("<I", tail + len(values))
        directory += struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", ends[-1]) + b"".join(blocks) + directory + bytes(4) + values


COLOUR = {256: [WIDTH], 257: [HEIGHT], 258: [8, 8, 8], 262: [2], 277: [3]}
ROWS = [slice(0, 5), slice(5, 10), slice(10, 13)]
WIDER = np.zeros((16, 32, 3), np.uint8)
WIDER[:HEIGHT, :WIDTH] = NOISE
LAYOUTS = {
    "strips": ({278: [5]}, [NOISE[rows] for rows in ROWS], 273),
    "planes": ({278: [5], 284: [2]}, [NOISE[r, :, c] for c in range(3) for r in ROWS], 273),
    "tiles": ({322: [16], 323: [16]}, [WIDER[:, :16], WIDER[:, 16:]], 324),
}


@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize("compression", [1, 8])
@each(LAYOUTS)
def test_strips_planes_and_tiles(data, compression, turn):
    tags, parts, places = data
    blocks = [part.tobytes() for part in parts]
    if compression == 8:
        blocks = [zlib.compress(block) for block in blocks]
    tags = {**COLOUR, **tags, 259: [compression], 274: [turn]}
    file = blocks_tiff(tags, blocks, places)
    assert np.array_equal(decode_image(file, apply_exif=True), upright(NOISE, turn))
    with pytest.raises(DecodeError, match="fewer strips or tiles than the image needs"):
        decode_image(blocks_tiff(tags, blocks[:-1], places), apply_exif=True)


# Hostile files


HEADER = b"IHDR" + struct.pack(">II", 20000, 20000) + b"\x08\2\0\0\0"
BOMBS = {
    "gif": b"GIF89a" + struct.pack("<HH", 20000, 20000) + b"\0\0\0,"
    + struct.pack("<HHHH", 0, 0, 20000, 20000) + b"\0\2\0;",
    "tiff": tiff([(256, 3, 60000), (257, 3, 6000), (258, 3, 8), (259, 3, 5), (262, 3, 1)]),
    "ppm": b"P6\n60000 60000\n255\n",
    "ppm-text": b"P2\n60000 60000\n255\n",
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\r" + HEADER + struct.pack(">I", zlib.crc32(HEADER))
    + b"\0\0\0\0IDAT",
}  # fmt: skip


decode_upright = partial(decode_image, apply_exif=True)


@each(BOMBS)
def test_the_cap_comes_before_the_pixels(data, recwarn, capfd):
    for call in (decode_upright, measure):
        with pytest.raises(DecodeError, match="000 pixels exceed the cap of"):
            call(data)
    assert not recwarn.list and capfd.readouterr().err == ""


@each({name: ALL[name] for name in ("gif", "tiff-tiff_lzw-RGB", "avif", "ppm", "pbm")})
def test_the_cap_is_exact(data):
    width, height, _ = measure(data)
    decode_image(data, apply_exif=True, max_pixels=width * height)
    for call in (decode_upright, measure):
        with pytest.raises(DecodeError, match=f"{width} x {height} pixels exceed the cap of"):
            call(data, max_pixels=width * height - 1)


def test_a_tile_of_a_tiff_counts_as_the_memory_that_it_takes():
    tags = [(256, 3, 8), (257, 3, 8), (258, 3, 8), (259, 3, 5), (262, 3, 1), (277, 3, 1),
            (322, 4, 40000), (323, 4, 40000), (324, 4, 8), (325, 4, 64)]  # fmt: skip
    data = tiff(tags, bytes(64))
    data = data.replace(struct.pack("<HH", 273, 4), struct.pack("<HH", 60000, 4))
    with pytest.raises(DecodeError, match="blocks of 1600000000 pixels"):
        decode_image(data, apply_exif=True)


def test_a_tiff_that_lacks_strips_is_refused():
    """Pillow leaves black what no strip covers."""
    pixels = NOISE[:, :, 0]
    data = grey_tiff(pixels).replace(
        struct.pack("<HHIHH", 278, 3, 1, HEIGHT, 0), struct.pack("<HHIHH", 278, 3, 1, 2, 0)
    )
    assert by_pillow(data)[-1].max() == 0
    with pytest.raises(DecodeError, match="fewer strips or tiles than the image needs"):
        decode_image(data, apply_exif=True)


def test_the_thumbnail_of_a_raw_photo_is_no_image():
    pixels = NOISE[:, :, 0]
    for data in (grey_tiff(pixels, subfile=1),
                 grey_tiff(pixels)[:8] + b"CR\2\0" + grey_tiff(pixels)[12:]):  # fmt: skip
        with pytest.raises(DecodeError, match="a camera's raw image"):
            decode_image(data, apply_exif=True)


def test_many_samples_a_pixel_are_named():
    data = grey_tiff(NOISE[:, :, 0]).replace(
        struct.pack("<HHIH", 277, 3, 1, 1), struct.pack("<HHIH", 277, 3, 1, 31)
    )
    with pytest.raises(DecodeError, match="31 samples per pixel"):
        decode_image(data, apply_exif=True)
