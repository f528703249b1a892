"""The quick search for damage finds what decoding every image in full finds."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fastrot.data.beton import BetonFile, BetonWriter, Field, Kind, damage
from fastrot.data.beton.damage import find_damage
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest
from fastrot.kernels.decode.op import JpegError, decode_jpeg

IMAGE = Field("image", Kind.IMAGE)


def jpeg(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def write(path, images):
    with BetonWriter(path, [IMAGE], capacity=len(images)) as writer:
        for image in images:
            writer.add(image)
        writer.commit()
    return path


def decodes(data):
    try:
        decode_jpeg(data)
    except JpegError:
        return False
    return True


def mutants(data, count, rng):
    """Copies of a JPEG with a few bytes changed behind its header; the end marker stays."""
    begin = data.index(b"\xff\xda") + 14
    for _ in range(count):
        mutant = bytearray(data)
        for place in rng.integers(begin, len(data) - 2, rng.integers(1, 4)):
            mutant[place] = rng.choice([0x00, 0xFF, 0xD0, 0xD9, rng.integers(256)])
        yield bytes(mutant)


@pytest.fixture(scope="module")
def altered(test_data, tmp_path_factory):
    """A file of 600 altered photos of every kind of coding, and which of them are sound."""
    rng = np.random.default_rng(0)
    folder = test_data("imagenette-128") / "val"
    photos = sorted(path for path in folder.rglob("*") if path.is_file())[::90]
    images = []
    for i, path in enumerate(photos):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        options = [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 3}]
        images += mutants(jpeg(pixels, **options[i % 4]), 50, rng)
    path = write(tmp_path_factory.mktemp("altered") / "x.beton", images)
    return path, [i for i, image in enumerate(images) if not decodes(image)]


@pytest.mark.parametrize("workers", [0, 2])
def test_threads_find_what_a_full_decode_finds(altered, workers):
    path, bad = altered
    assert 100 < len(bad)
    with BetonFile.open(path) as file:
        assert len(bad) < len(file) - 20, "some changes leave a sound image"
        assert list(find_damage(file, None, workers=workers)) == bad


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_find_the_same(altered, workers, monkeypatch):
    monkeypatch.setattr(damage, "_native_can", lambda file: False)
    path, bad = altered
    with BetonFile.open(path) as file:
        assert list(find_damage(file, None, workers=workers)) == bad


@pytest.mark.parametrize("native", [True, False])
def test_checksums_alone(test_data, tmp_path, native, monkeypatch):
    folder = test_data("imagenette-128")
    made = tmp_path / "o.beton"
    prepare(PrepareRequest(folder, made, split="val", copy=True, progress=False))
    if not native:
        monkeypatch.setattr(damage, "_native_can", lambda file: False)
    with BetonFile.open(made) as file:
        checksums = np.arange(len(file), dtype=np.uint64)
        progress = []
        found = find_damage(
            file, checksums, decode=native, workers=2, advance=lambda *done: progress.append(done)
        )
        assert list(found) == list(range(1000))
        assert set(found.values()) == {"its bytes do not match the checksum in the manifest"}
        images, sizes = np.sum(progress, axis=0)
        assert (images, sizes) == (1000, file.data_sizes.sum())


def test_a_second_image_field_is_decoded_too(tmp_path):
    path = tmp_path / "two.beton"
    fields = [Field("image", Kind.IMAGE), Field("label", Kind.INT), Field("other", Kind.IMAGE)]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
    jpegs = [jpeg(image) for image in pixels]
    broken = bytearray(jpegs[1])
    broken[len(broken) // 2 : len(broken) // 2 + 8] = b"\xff\xd9" * 4
    with BetonWriter(path, fields, capacity=3) as writer:
        writer.add(jpegs[0], 0, pixels[0])
        writer.add(pixels[0], 0, jpegs[1])
        writer.add(jpegs[0], 0, bytes(broken))
        writer.commit()
    with BetonFile.open(path) as file:
        assert list(find_damage(file, None, workers=2)) == [2]
