"""Crops by the threads in C++, against their definition, on every kind of photo there is."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastrot.data.images.decode import DecodeError, decode_image, measure
from fastrot.kernels.decode.crop import CropDecoder, Crops, SourceFile, Spans
from fastrot.kernels.decode.crop_reference import crop_and_resize
from fastrot.kernels.decode.header import jpeg_header
from fastrot.kernels.decode.op import JpegError, decode_jpeg

SIDE = 96
DEADLINE = 120


def crops_of(boxes, sizes, *, raw=False, orientation=1, to_end=True) -> Crops:
    count = len(boxes)
    return Crops(
        np.array(boxes, np.int32).reshape(count, 4),
        np.array(sizes, np.int32).reshape(count, 2),
        np.broadcast_to(np.uint8(orientation), count).copy(),
        np.full(count, raw),
        np.full(count, to_end),
    )


def crop(samples, crops, size=SIDE, *, exact=True, threads=2, colour_only=False):
    """Crops of samples in memory, and what failed."""
    decoder = CropDecoder(threads, size=size, exact=exact, colour_only=colour_only)
    out = np.zeros((len(samples), size, size, 3), np.uint8)
    job = decoder.submit_memory(out, crops, samples)
    assert job.wait(DEADLINE)
    return out, job.failures()


def crop_raw(images, boxes, size=SIDE, **more):
    sizes = [(image.shape[1], image.shape[0]) for image in images]
    rows = [np.ascontiguousarray(image).reshape(-1) for image in images]
    out, failed = crop(rows, crops_of(boxes, sizes, raw=True), size, **more)
    assert failed == []
    return out


def random_boxes(rng, sizes):
    boxes = []
    for w, h in sizes:
        box_w, box_h = rng.integers(1, w + 1), rng.integers(1, h + 1)
        boxes.append((rng.integers(0, w - box_w + 1), rng.integers(0, h - box_h + 1), box_w, box_h))
    return np.array(boxes, np.int32)


def jpeg(pixels, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(test_data):
    """Every sound JPEG of three sets: bytes, pixels as stored, upright size, EXIF orientation."""
    found = []
    for name in ("imagenet-300", "coco-mini", "bad-inputs"):
        root = test_data(name)
        for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")):
            data = path.read_bytes()
            try:
                pixels = decode_jpeg(data)
            except JpegError:
                continue
            width, height, turn = measure(data)
            found.append((data, pixels, (width, height), turn))
    assert len(found) > 700
    return found


@pytest.fixture(scope="module")
def some(photos):
    return photos[::12]


# Pixels


def test_no_value_is_more_than_a_level_from_the_reference(photos):
    rng = np.random.default_rng(0)
    sizes = [size for _, _, size, _ in photos]
    boxes = random_boxes(rng, sizes)
    turns = np.array([turn for *_, turn in photos], np.uint8)
    assert {6, 8, 3} <= set(turns.tolist()), "some photos lie on their side"
    files = [data for data, *_ in photos]
    out, failed = crop(files, crops_of(boxes, sizes, orientation=turns), 224)
    assert failed == []
    worst = mean = 0.0
    for (data, *_), box, ours in zip(photos, boxes, out, strict=True):
        reference = crop_and_resize(decode_image(data, apply_exif=True), box, 224)
        difference = np.abs(ours.astype(int) - reference)
        worst, mean = max(worst, difference.max()), mean + difference.mean() / len(photos)
    assert worst <= 1 and mean < 0.25


def test_only_the_box_is_decoded_and_nothing_differs(some):
    """Rows, columns and chroma at the rim of a box are those of the whole image, bit for bit."""
    rng = np.random.default_rng(1)
    for _ in range(6):
        sizes = [(p.shape[1], p.shape[0]) for _, p, _, _ in some]
        boxes = random_boxes(rng, sizes)
        ours, failed = crop([data for data, *_ in some], crops_of(boxes, sizes))
        assert failed == []
        assert np.array_equal(ours, crop_raw([pixels for _, pixels, _, _ in some], boxes))


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:2:0"},
        {"subsampling": "4:1:1"},
        {"progressive": True},
        {"restart_marker_blocks": 3},
        {"quality": 3},
    ],
    ids=str,
)
def test_every_box_of_a_small_jpeg(options):
    rng = np.random.default_rng(2)
    base = rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(base).resize((75, 61), Image.Resampling.BICUBIC))
    data = jpeg(pixels, **options)
    stored = decode_jpeg(data)
    boxes = random_boxes(rng, [(75, 61)] * 150)
    boxes[:4] = [[0, 0, 75, 61], [74, 60, 1, 1], [16, 16, 16, 16], [0, 45, 75, 16]]
    ours, failed = crop([data] * 150, crops_of(boxes, [(75, 61)] * 150), 24)
    assert failed == []
    assert np.array_equal(ours, crop_raw([stored] * 150, boxes, 24))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize(("width", "height"), [(257, 200), (256, 33), (240, 241)])
def test_restart_markers_let_it_leave_out_what_lies_around_the_box(subsampling, width, height):
    """Bit for bit what the whole image gives, even where the rest of the image is destroyed."""
    rng = np.random.default_rng(width)
    small = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    boxes = random_boxes(rng, [(width, height)] * 120)
    boxes[:3] = [[0, 0, width, height], [width - 1, height - 1, 1, 1], [64, 16, 64, 16]]
    boxes[3] = [-5, -5, 60, 30]
    block = {"4:4:4": 8, "4:2:2": 16, "4:2:0": 16}[subsampling]
    across = -(-width // block)
    for interval in (1, 2, 3, across, across + 1, 1000):
        data = jpeg(pixels, subsampling=subsampling, restart_marker_blocks=interval)
        expected = crop_raw([decode_jpeg(data)] * 120, boxes, 24)
        crops = crops_of(boxes, [(width, height)] * 120, to_end=False)
        ours, failed = crop([data] * 120, crops, 24)
        assert failed == [] and np.array_equal(ours, expected)
        if across % interval:
            continue
        # Its first interval destroyed, an image still gives every box that is far from it.
        start = data.index(b"\xff\xda") + 20
        end = data.index(b"\xff\xd0", start)
        broken = data[:start] + bytes(end - start) + data[end:]
        far = (boxes[:, 0] > 16 + (interval + 1) * block) | (boxes[:, 1] > 40)
        if interval * 3 <= across and width > 64:
            ours, failed = crop([broken] * 120, crops, 24)
            assert not {row for row, _ in failed} & set(np.flatnonzero(far).tolist())
            assert np.array_equal(ours[far], expected[far])


def test_an_unusual_sampling_is_left_to_another_decoder():
    """Found in review: skipping rows of such an image, libjpeg ran in circles."""
    pixels = np.random.default_rng(4).integers(0, 256, (92, 106, 3), dtype=np.uint8)
    data = bytearray(jpeg(pixels, restart_marker_blocks=3))
    frame = data.index(b"\xff\xc0")
    for component, sampling in enumerate((0x12, 0x21, 0x14)):
        data[frame + 11 + 3 * component] = sampling
    for exact in (True, False):
        for to_end in (True, False):
            crops = crops_of([(64, 21, 32, 32)], [(106, 92)], to_end=to_end)
            _, failed = crop([bytes(data)], crops, 8, exact=exact)
            assert failed == [(0, "an unusual sampling of its colours")]


@pytest.mark.parametrize("box", [(64, 21, 32, 32), (0, 0, 100, 40), (90, 70, 10, 10)])
def test_a_progressive_image_without_its_last_scans_is_what_it_has(photo, box):
    """Nothing is guessed in place of missing detail, so a part is that of the whole."""
    pixels = decode_jpeg(photo)
    data = jpeg(pixels, progressive=True)
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    for start in starts[2:-1:2]:
        cut = data[:start] + b"\xff\xd9"
        ours, failed = crop([cut], crops_of([box], [(400, 300)]), 24)
        assert failed == []
        assert np.array_equal(ours, crop_raw([decode_jpeg(cut)], [box], 24))


@pytest.mark.parametrize(("side", "size"), [(1024, 32), (2048, 64), (2000, 33), (700, 3)])
@pytest.mark.parametrize("period", [2, 3, 4])
def test_very_many_pixels_become_one(side, size, period):
    stripes = (np.arange(side) % period == 0).astype(np.uint8) * 255
    pixels = np.broadcast_to(stripes[None, :, None], (side, side, 3)).copy()
    box = (0, 0, side, side)
    ours = crop_raw([pixels], [box], size)[0]
    reference = crop_and_resize(pixels, np.array(box), size)
    assert np.abs(ours.astype(int) - reference).max() <= 1
    turned = crop_raw([np.rot90(pixels)], [box], size)[0]
    assert np.array_equal(turned, np.rot90(ours))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk(mode):
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((80, 70), Image.Resampling.BICUBIC).convert(mode).save(file, "JPEG")
    data = file.getvalue()
    boxes = random_boxes(rng, [(80, 70)] * 20)
    ours, failed = crop([data] * 20, crops_of(boxes, [(80, 70)] * 20))
    assert failed == []
    assert np.array_equal(ours, crop_raw([decode_jpeg(data)] * 20, boxes))
    _, failed = crop([data], crops_of([[0, 0, 80, 70]], [(80, 70)]), colour_only=True)
    assert failed == [(0, "not three components")]


def test_every_orientation_is_that_of_the_upright_image(test_data):
    files = sorted((test_data("bad-inputs")).rglob("*.jpg"))
    seen = set()
    for path in files:
        data = path.read_bytes()
        try:
            upright = decode_image(data, apply_exif=True)
        except DecodeError:
            continue
        height, width, _ = upright.shape
        turn = measure(data)[2]
        seen.add(turn)
        boxes = random_boxes(np.random.default_rng(turn), [(width, height)] * 8)
        ours, failed = crop(
            [data] * 8, crops_of(boxes, [(width, height)] * 8, orientation=turn), 50
        )
        assert failed == [] and np.array_equal(ours, crop_raw([upright] * 8, boxes, 50))
    assert seen == set(range(1, 9))


def test_a_box_that_leaves_the_image_is_black_outside(some):
    for _, pixels, _, _ in some[:20]:
        height, width, _ = pixels.shape
        side = min(width, height)
        boxes = [
            (-side // 8, -side // 8, side, side),
            (width - side // 2, height - side // 2, side, side),
            (width + 5, height + 5, 30, 30),
            (-40, 0, 30, 30),
        ]
        ours = crop_raw([pixels] * 4, boxes, 64)
        for box, image in zip(boxes, ours, strict=True):
            reference = crop_and_resize(pixels, np.array(box), 64)
            assert np.abs(image.astype(int) - reference).max() <= 1
        assert not ours[2:].any()


SHRUNK = [
    # crop, ratio of box and crop: mean over all crops, over the worst one, worst pixel
    ("imagenette-128", 16, 2, 5.5, 18, 120),
    ("imagenette-128", 16, 3, 2.5, 6.5, 65),
    ("imagenette-128", 32, 2, 5.2, 17, 120),
    ("imagenette-128", 32, 3, 2.2, 5.5, 65),
    ("imagenette-128", 32, 4, 4.2, 11, 120),
    ("imagenette-128", 64, 2, 4.2, 14, 120),
    ("imagenet-300", 32, 8, 3.8, 12, 120),
    ("imagenet-300", 48, 6, 1.8, 4.5, 65),
    ("imagenet-300", 64, 4, 3.6, 11, 120),
    ("imagenet-300", 112, 2, 3.5, 10.5, 120),
    ("imagenet-300", 112, 3, 1.8, 4.5, 65),
    ("imagenet-300", 224, 2, 3, 7, 120),
]


@pytest.mark.parametrize(
    ("name", "size", "ratio", "mean", "worst", "pixel"),
    [
        pytest.param(*case, marks=() if case in SHRUNK[3::4] else pytest.mark.chaos)
        for case in SHRUNK
    ],
)
def test_how_far_shrinking_in_the_dct_domain_is_from_the_exact_crop(
    test_data, name, size, ratio, mean, worst, pixel
):
    """The table in ``data/loaders/native.py``: the most where no resize is left to be done."""
    side, files, sizes = size * ratio, [], []
    paths = sorted(p for p in test_data(name).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    for path in paths[:400]:
        data = path.read_bytes()
        width, height, turn = measure(data)
        if min(width, height) >= side and turn == 1 and jpeg_header(data).components == 3:
            files.append(data)
            sizes.append((width, height))
    assert len(files) >= 30
    for smaller, shrinks in ((0, True), (size * (ratio - 2) + 1, False)):
        edge = side - smaller
        boxes = [((w - edge) // 2, (h - edge) // 2, edge, edge) for w, h in sizes]
        exact, failed = crop(files, crops_of(boxes, sizes), size)
        fast, failed_too = crop(files, crops_of(boxes, sizes), size, exact=False)
        assert failed == failed_too == []
        difference = np.abs(exact.astype(int) - fast)
        if not shrinks:
            assert not difference.any(), "a box below twice the size is decoded as it is"
            continue
        by_image = difference.mean(axis=(1, 2, 3))
        assert (by_image > 0).mean() > 0.9
        assert mean / 3 < by_image.mean() < mean
        assert by_image.max() < worst and difference.max() < pixel


# Turns


@st.composite
def boxed_images(draw):
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    box_w, box_h = draw(st.integers(1, width)), draw(st.integers(1, height))
    left = draw(st.integers(-3, width - box_w + 3))
    top = draw(st.integers(-3, height - box_h + 3))
    seed = draw(st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from(["noise", "edges"]))
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "edges":
        pixels = np.where(pixels > 127, np.uint8(255), np.uint8(0))
    return pixels, (left, top, box_w, box_h), draw(st.integers(1, 70))


def turned_box(box, width, height):
    """A box after a counter-clockwise quarter turn of its image."""
    left, top, box_w, box_h = box
    return (top, width - left - box_w, box_h, box_w)


@given(boxed_images())
@settings(max_examples=300, deadline=None)
def test_the_resize_commutes_with_turns_and_mirrors_bit_for_bit(case):
    pixels, box, size = case
    expected = crop_raw([pixels], [box], size)[0]
    for k in range(1, 4):
        height, width, _ = pixels.shape
        pixels, box = np.rot90(pixels), turned_box(box, width, height)
        assert np.array_equal(crop_raw([pixels], [box], size)[0], np.rot90(expected, k))
    mirrored = (pixels.shape[1] - box[0] - box[2], *box[1:])
    there = crop_raw([pixels], [box], size)[0]
    assert np.array_equal(crop_raw([pixels[:, ::-1]], [mirrored], size)[0], there[:, ::-1])


@given(boxed_images())
@settings(max_examples=100, deadline=None)
def test_small_images_are_within_a_level_of_the_reference(case):
    pixels, box, size = case
    reference = crop_and_resize(pixels, np.array(box), size)
    ours = crop_raw([pixels], [box], size)[0]
    assert np.abs(ours.astype(int) - reference).max() <= 1


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_a_plain_image_stays_plain(value):
    sides = [(1, 1), (2, 3), (7, 500), (333, 97), (1500, 1400)]
    images = [np.full((h, w, 3), value, np.uint8) for w, h in sides]
    for size in (1, 2, 5, 32, 97):
        ours = crop_raw(images, [(0, 0, w, h) for w, h in sides], size)
        assert (ours == value).all()


PRINT_HASH = """
import sys
import numpy as np
import xxhash
from fastrot.kernels import _native
from fastrot.kernels.decode.crop import CropDecoder, Crops

rng = np.random.default_rng(5)
digest = xxhash.xxh3_64()
for size in (1, 7, 8, 33, 224):
    for _ in range(40):
        w, h = rng.integers(1, 300, 2).tolist()
        pixels = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        file = np.load(sys.argv[1])
        boxes = np.array([[-1, -2, w, h + 3], [3, 0, 60, 75]], np.int32)
        crops = Crops(boxes, np.array([[w, h], [75, 80]], np.int32), np.ones(2, np.uint8),
                      np.array([True, False]), np.array([True, True]))
        out = np.zeros((2, size, size, 3), np.uint8)
        job = CropDecoder(1, size=size).submit_memory(out, crops, [pixels.reshape(-1), file])
        assert job.wait(60) and not job.failures(), job.failures()
        digest.update(out)
print(_native.simd, digest.hexdigest())
"""


def test_simd_equals_the_portable_code_bit_for_bit(tmp_path):
    pixels = np.random.default_rng(6).integers(0, 256, (80, 75, 3), dtype=np.uint8)
    np.save(tmp_path / "file.npy", np.frombuffer(jpeg(pixels), np.uint8))
    printed = {}
    for simd in ("scalar", ""):
        done = subprocess.run(
            [sys.executable, "-c", PRINT_HASH, str(tmp_path / "file.npy")],
            env={**os.environ, "FASTROT_SIMD": simd},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        name, digest = done.stdout.split()
        printed[name] = digest
    assert "scalar" in printed
    if len(printed) == 1:
        pytest.skip("this processor has no AVX2")
    assert len(set(printed.values())) == 1


# Damage


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(7)
    small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    return jpeg(np.asarray(small.resize((400, 300), Image.Resampling.BICUBIC)))


WHOLE = crops_of([(0, 0, 400, 300)], [(400, 300)])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data[: len(data) // 2], "Premature end"),
        (lambda data: data[:-2], "Premature end"),
        (lambda data: b"", "Empty input file"),
        (lambda data: b"<html>", "Not a JPEG file"),
        (lambda data: data[:3000] + b"\xff\xd9" + data[3002:], "premature end"),
    ],
)
def test_damage_is_a_failure_with_libjpegs_words(photo, change, why):
    _, failed = crop([change(photo), photo], crops_of([(0, 0, 400, 300)] * 2, [(400, 300)] * 2))
    assert [row for row, _ in failed] == [0]
    assert why.lower() in failed[0][1].lower()


def test_every_cut_is_noticed(photo):
    cuts = [photo[:n] for n in range(0, len(photo), 97)]
    _, failed = crop(cuts, crops_of([(0, 0, 400, 300)] * len(cuts), [(400, 300)] * len(cuts)))
    assert [row for row, _ in failed] == list(range(len(cuts)))
    # Read to its end, an image shows damage that lies behind its box.
    _, failed = crop(cuts, crops_of([(10, 0, 50, 20)] * len(cuts), [(400, 300)] * len(cuts)))
    assert [row for row, _ in failed] == list(range(len(cuts)))


def test_damage_behind_the_box_matters_only_when_the_image_is_read_to_its_end(photo):
    cut = photo[: len(photo) * 3 // 4]
    box = [(10, 5, 60, 40)]
    sound, _ = crop([photo], crops_of(box, [(400, 300)]))
    ours, failed = crop([cut], crops_of(box, [(400, 300)], to_end=False))
    assert failed == [] and np.array_equal(ours, sound)
    _, failed = crop([cut], crops_of(box, [(400, 300)], to_end=True))
    assert failed


def without(data: bytes, marker: int) -> bytes:
    """A JPEG without its segments of a kind."""
    out, at = data[:2], 2
    while data[at + 1] != 0xDA:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] != marker:
            out += data[at : at + 2 + size]
        at += 2 + size
    return out + data[at:]


def test_an_image_without_tables_does_not_take_those_of_the_image_before(photo):
    """Found by fuzzing: libjpeg keeps them between images, and would decode something else."""
    bare = without(photo, 0xDB)
    crops = crops_of([(0, 0, 400, 300)] * 3, [(400, 300)] * 3)
    _, failed = crop([photo, bare, photo], crops, threads=1)
    assert [row for row, _ in failed] == [1] and "uantization table" in failed[0][1]


@pytest.mark.parametrize(
    ("sizes", "why"),
    [([(401, 300)], "expected width"), ([(300, 400)], "expected width")],
)
def test_another_size_than_announced(photo, sizes, why):
    _, failed = crop([photo], crops_of([(0, 0, 50, 50)], sizes))
    assert len(failed) == 1 and why in failed[0][1]


def test_an_image_beyond_the_cap_is_refused_before_it_is_decoded(test_data):
    decoder = CropDecoder(1, size=8, max_pixels=1000)
    data = jpeg(np.zeros((40, 40, 3), np.uint8))
    out = np.zeros((1, 8, 8, 3), np.uint8)
    job = decoder.submit_memory(out, crops_of([(0, 0, 40, 40)], [(40, 40)]), [data])
    assert job.wait(DEADLINE) and job.failures() == [(0, "more pixels than the cap")]


def test_raw_pixels_of_another_size():
    _, failed = crop([bytes(299)], crops_of([(0, 0, 10, 10)], [(10, 10)], raw=True))
    assert failed == [(0, "not 3 x width x height bytes")]


@pytest.mark.parametrize(
    "change",
    [
        {"boxes": np.array([[0, 0, 0, 5]], np.int32)},
        {"boxes": np.array([[0, 0, 1 << 27, 5]], np.int32)},
        {"sizes": np.array([[0, 5]], np.int32)},
        {"orientation": np.array([9], np.uint8)},
        {"raw": np.array([False, False])},
    ],
    ids=str,
)
def test_arguments_that_make_no_sense(photo, change):
    arguments = {**WHOLE.__dict__, **change}
    decoder = CropDecoder(1, size=8)
    with pytest.raises(ValueError):
        decoder.submit_memory(np.zeros((1, 8, 8, 3), np.uint8), Crops(**arguments), [photo])
    with pytest.raises((ValueError, TypeError)):
        decoder.submit_memory(np.zeros((1, 8, 9, 3), np.uint8), WHOLE, [photo])
    with pytest.raises((ValueError, TypeError)):
        decoder.submit_memory(np.zeros((1, 8, 8, 3), np.float32), WHOLE, [photo])


# Files


@pytest.fixture
def archive(photo, tmp_path):
    """Twenty samples in a file, each with a second field, and their checksums."""
    rng = np.random.default_rng(8)
    path = tmp_path / "samples.bin"
    offsets, sizes, records, sums = [], [], rng.integers(0, 256, (20, 24), dtype=np.uint8), []
    with path.open("wb") as file:
        for i in range(20):
            image, note = photo, bytes(rng.integers(0, 256, i, dtype=np.uint8))
            offsets.append((file.tell() + len(note), file.tell()))
            sizes.append((len(image), len(note)))
            file.write(note + image)
            file.write(bytes(int(rng.integers(1, 5000))))
            sums.append(xxhash.xxh3_64(records[i].tobytes() + image + note).intdigest())
    spans = Spans(
        np.array(offsets, np.uint64),
        np.array(sizes, np.uint64),
        0,
        records,
        np.array(sums, np.uint64),
    )
    return path, spans


TWENTY = crops_of([(20, 30, 200, 150)] * 20, [(400, 300)] * 20)


@pytest.mark.parametrize("mapped", [True, False])
def test_samples_of_a_file_and_their_checksums(photo, archive, mapped):
    path, spans = archive
    decoder = CropDecoder(2, size=SIDE)
    with path.open("rb") as file:
        source = SourceFile(file.fileno(), map_memory=mapped)
    assert source.mapped == mapped
    out = np.zeros((20, SIDE, SIDE, 3), np.uint8)
    job = decoder.submit(out, TWENTY, source, spans, announce=True)
    assert job.wait(DEADLINE) and job.failures() == []
    expected, _ = crop([photo], crops_of([(20, 30, 200, 150)], [(400, 300)]))
    assert (out == expected[0]).all()
    with path.open("r+b") as file:  # one bit of an image, one of a note
        for at in (int(spans.offsets[3, 0]) + 5000, int(spans.offsets[7, 1]) + 2):
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 4]))
    job = decoder.submit(out, TWENTY, source, spans)
    assert job.wait(DEADLINE)
    assert [row for row, why in job.failures() if "checksum" in why] == [3, 7]


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_that_is_cut_while_it_is_read_is_a_failure_and_not_the_end(archive, mapped):
    path, spans = archive
    with path.open("rb") as file:
        source = SourceFile(file.fileno(), map_memory=mapped)
    os.truncate(path, int(spans.offsets[11, 0]) + 4096)
    decoder = CropDecoder(2, size=SIDE)
    out = np.zeros((20, SIDE, SIDE, 3), np.uint8)
    for _ in range(3):
        job = decoder.submit(out, TWENTY, source, spans)
        assert job.wait(DEADLINE)
        failed = dict(job.failures())
        assert set(failed) >= set(range(12, 20)) and min(failed) >= 10
        assert all("cut" in why or "beyond" in why for row, why in failed.items() if row > 12)


def test_a_span_beyond_the_file(archive):
    path, spans = archive
    far = Spans(spans.offsets + np.uint64(2**40), spans.sizes, 0, spans.records, None)
    with path.open("rb") as file:
        source = SourceFile(file.fileno(), map_memory=True)
    job = CropDecoder(1, size=8).submit(np.zeros((20, 8, 8, 3), np.uint8), TWENTY, source, far)
    assert job.wait(DEADLINE) and len(job.failures()) == 20


def test_a_closed_descriptor():
    with pytest.raises(OSError):
        SourceFile(10**6, map_memory=True)


# Threads


def test_batches_are_finished_in_the_order_of_their_submission(some):
    decoder = CropDecoder(2, size=32)
    sizes = [(p.shape[1], p.shape[0]) for _, p, _, _ in some]
    crops = crops_of([(0, 0, w, h) for w, h in sizes], sizes)
    files = [data for data, *_ in some]
    outs = [np.zeros((len(files), 32, 32, 3), np.uint8) for _ in range(6)]
    jobs = [decoder.submit_memory(out, crops, files) for out in outs]
    assert jobs[-1].wait(DEADLINE)
    assert all(job.wait(0) for job in jobs)
    assert all(np.array_equal(out, outs[0]) for out in outs)


def test_discarded_and_forgotten_jobs(photo):
    decoder = CropDecoder(2, size=64)
    crops = crops_of([(0, 0, 400, 300)] * 50, [(400, 300)] * 50)
    for _ in range(20):
        for _ in range(4):
            decoder.submit_memory(np.zeros((50, 64, 64, 3), np.uint8), crops, [photo] * 50)
        decoder.discard()
    out = np.zeros((50, 64, 64, 3), np.uint8)
    job = decoder.submit_memory(out, crops, [photo] * 50)
    assert job.wait(DEADLINE) and job.failures() == [] and (out == out[0]).all()
    decoder.submit_memory(out, crops, [photo] * 50)
    before = threading.active_count()
    del decoder, job  # with a job at work
    assert threading.active_count() == before


def test_a_wait_ends_at_its_deadline(photo):
    decoder = CropDecoder(1, size=64)
    crops = crops_of([(0, 0, 400, 300)] * 2000, [(400, 300)] * 2000)
    job = decoder.submit_memory(np.zeros((2000, 64, 64, 3), np.uint8), crops, [photo] * 2000)
    assert not job.wait(0.01)
    decoder.discard()


def test_threads_that_a_fork_left_behind_say_so(photo):
    decoder = CropDecoder(1, size=8)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        told = b""
        try:
            decoder.submit_memory(np.zeros((1, 8, 8, 3), np.uint8), WHOLE, [photo])
        except RuntimeError as error:
            told = str(error).encode()
        start = time.monotonic()
        decoder.discard()
        os.write(writer, told + (b" at once" if time.monotonic() - start < 60 else b" late"))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 200) == b"the threads did not survive a fork at once"
    os.close(reader)
    os.close(writer)


def test_a_decoder_needs_a_thread():
    with pytest.raises(ValueError, match="threads must be at least 1"):
        CropDecoder(0, size=8)


BUS_ERROR = """
import faulthandler, mmap, sys
import numpy as np
from fastrot.kernels.decode.crop import CropDecoder, Crops, SourceFile, Spans

path = sys.argv[1]
with open(path, "r+b") as file:
    source = SourceFile(file.fileno(), map_memory=True)
    one = np.ones(1, np.uint8)
    crops = Crops(np.array([[0, 0, 2, 2]], np.int32), np.array([[2, 2]], np.int32), one,
                  np.ones(1, bool), np.ones(1, bool))
    spans = Spans(np.zeros((1, 1), np.uint64), np.full((1, 1), 12, np.uint64), 0,
                  np.zeros((1, 0), np.uint8), None)
    decoder = CropDecoder(1, size=4)
    for _ in range(2):
        job = decoder.submit(np.zeros((1, 4, 4, 3), np.uint8), crops, source, spans)
        assert job.wait(120) and not job.failures()
        faulthandler.enable()
    ours = mmap.mmap(file.fileno(), 0)
    file.truncate(0)
    ours[5000]
"""


def test_a_bus_error_of_somebody_else_ends_the_process_once(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(10000))
    done = subprocess.run(
        [sys.executable, "-c", BUS_ERROR, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -7
    assert 1 <= done.stderr.count("Bus error") <= 2


COUNT_ALLOCATIONS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
static long count;
long allocations(void) { return __atomic_load_n(&count, __ATOMIC_SEQ_CST); }
static void note(void) {
  char name[16] = "";
  prctl(PR_GET_NAME, name);
  if (strcmp(name, "fastrot-decode") == 0) __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
}
void *malloc(size_t size) {
  static void *(*next)(size_t);
  if (!next) next = dlsym(RTLD_NEXT, "malloc");
  note();
  return next(size);
}
void *aligned_alloc(size_t alignment, size_t size) {
  static void *(*next)(size_t, size_t);
  if (!next) next = dlsym(RTLD_NEXT, "aligned_alloc");
  note();
  return next(alignment, size);
}
void *realloc(void *old, size_t size) {
  static void *(*next)(void *, size_t);
  if (!next) next = dlsym(RTLD_NEXT, "realloc");
  note();
  return next(old, size);
}
"""

RUN_TWICE = """
import ctypes, sys
import numpy as np
from fastrot.kernels.decode.crop import CropDecoder, Crops

count = ctypes.CDLL(sys.argv[1]).allocations
files = np.load(sys.argv[2])
files = [files[name] for name in files.files]
n = len(files)
boxes, sizes = np.load(sys.argv[3]), np.load(sys.argv[4])
crops = Crops(boxes, sizes, np.ones(n, np.uint8), np.zeros(n, bool), np.ones(n, bool))
decoder = CropDecoder(1, size=64)
seen = []
for _ in range(4):
    job = decoder.submit_memory(np.zeros((n, 64, 64, 3), np.uint8), crops, files)
    assert job.wait(60) and not job.failures()
    seen.append(count())
print(*seen)
"""


def test_no_memory_is_allocated_once_the_largest_image_was_seen(some, tmp_path):
    (tmp_path / "count.c").write_text(COUNT_ALLOCATIONS)
    library = tmp_path / "count.so"
    build = ["cc", "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "count.c", "-ldl"]
    try:
        subprocess.run(build, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler")
    # libjpeg keeps the coefficients of progressive images in memory of its own.
    baseline = [(data, p) for data, p, _, _ in some if b"\xff\xc2" not in data[:4000]]
    np.savez(tmp_path / "files.npz", *[np.frombuffer(data, np.uint8) for data, _ in baseline])
    sizes = np.array([(p.shape[1], p.shape[0]) for _, p in baseline], np.int32)
    np.save(tmp_path / "sizes.npy", sizes)
    np.save(tmp_path / "boxes.npy", random_boxes(np.random.default_rng(9), sizes))
    arguments = [library, *(tmp_path / f for f in ("files.npz", "boxes.npy", "sizes.npy"))]
    done = subprocess.run(
        [sys.executable, "-c", RUN_TWICE, *map(str, arguments)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    counts = [int(number) for number in done.stdout.split()]
    assert counts[0] > 0, "the counter counts"
    assert counts[1] == counts[3], "images of the second round on allocate nothing"
