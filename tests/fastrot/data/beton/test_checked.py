"""What is remembered of a check: of this very file, by whoever checked it completely."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from fastrot.data.beton import damage
from fastrot.data.beton.damage import bad_samples, known_bad_samples
from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.beton.manifest import manifest_path
from fastrot.data.beton.verify import verify
from fastrot.data.loader import LoaderSpec, build_loader
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """``decoded.beton`` and ``copied.beton``: the same 40 JPEGs, re-encoded and kept."""
    folder = tmp_path_factory.mktemp("checked")
    rng = np.random.default_rng(0)
    (folder / "set").mkdir()
    for i in range(40):
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "set" / f"{i:02}.jpg")
    prepare(PrepareRequest(folder / "set", folder / "decoded.beton", progress=False))
    prepare(PrepareRequest(folder / "set", folder / "copied.beton", copy=True, progress=False))
    return folder


@pytest.fixture(params=["decoded", "copied"])
def beton(request, files, tmp_path):
    for path in files.glob(f"{request.param}.beton*"):
        shutil.copy(path, tmp_path)
    return tmp_path / f"{request.param}.beton"


@pytest.fixture
def looks(monkeypatch):
    """A list with one entry for each real look at the data: whether images were decoded."""
    made = []
    real = damage.find_damage

    def look(*arguments, **options):
        made.append(options["decode"])
        return real(*arguments, **options)

    monkeypatch.setattr(damage, "find_damage", look)
    return made


def alter(path, sample):
    """Change the middle of an image so that libjpeg warns about it."""
    samples = BetonDataset(path)
    offset = int(samples.file.data_pointers[sample]) + int(samples.file.data_sizes[sample]) // 2
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff\xd9" * 8)


def test_a_checked_file_is_not_checked_again(beton, looks):
    decodes = beton.name == "copied.beton"
    assert bad_samples(BetonDataset(beton)) == {}
    assert bad_samples(BetonDataset(beton)) == {}
    assert looks == [decodes], "bytes that nobody decoded must be decoded"
    os.utime(beton, ns=(1, 1))
    assert bad_samples(BetonDataset(beton)) == {}
    assert len(looks) == 2, "a file that was touched"
    beton.with_name(beton.name + ".checked.json").write_text("[]")
    assert bad_samples(BetonDataset(beton)) == {}
    assert len(looks) == 3, "a spoilt stamp"


def test_without_checksums_every_image_is_decoded(beton, looks):
    alter(beton, 3)
    assert set(bad_samples(BetonDataset(beton, checksums=False))) == {3}
    assert looks == [True]


def test_damage_is_found_and_remembered(beton, looks):
    alter(beton, 7)
    found = bad_samples(BetonDataset(beton), workers=2)
    assert list(found) == [7] and "checksum" in found[7].reason
    again = bad_samples(BetonDataset(beton))
    assert str(again[7]) == str(found[7]) and len(looks) == 1


def test_damage_that_was_there_when_the_bytes_were_kept(files, tmp_path, looks):
    """The checksum fits and the image does not decode: only decoding finds it."""
    shutil.copytree(files / "set", tmp_path / "set")
    path = tmp_path / "set" / "11.jpg"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8] = b"\xff\xd1" * 4  # restarts: no end of the walk
    path.write_bytes(data)
    out = tmp_path / "o.beton"
    report = prepare(PrepareRequest(tmp_path / "set", out, copy=True, progress=False))
    assert report.kept == 40
    found = bad_samples(BetonDataset(out))
    assert len(found) == 1 and looks == [True]
    (sample,) = found
    assert BetonDataset(out).read(sample).data == bytes(data)
    assert [bad.sample for bad in verify(out, progress=False).bad_samples] == [sample]


def test_verify_spares_the_loaders_their_own_check(beton, looks):
    alter(beton, 5)
    assert [bad.sample for bad in verify(beton, progress=False).bad_samples] == [5]
    assert set(bad_samples(BetonDataset(beton))) == {5}
    assert set(known_bad_samples(BetonDataset(beton))) == {5}
    assert looks == []


def test_verify_leaves_nothing_where_the_manifest_is_wrong(beton):
    manifest_path(beton).write_text("{}")
    assert verify(beton, progress=False).exit_code == 65
    assert not beton.with_name(beton.name + ".checked.json").exists()


def test_the_stamp_goes_to_the_cache_where_the_folder_is_read_only(beton, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(damage, "_beside", lambda _: Path("/proc/no/such/place"))
    alter(beton, 2)
    found = bad_samples(BetonDataset(beton), workers=2)
    assert list(found) == [2]
    assert len(list((tmp_path / "cache" / "fastrot").iterdir())) == 1
    assert str(known_bad_samples(BetonDataset(beton))[2]) == str(found[2])


@pytest.mark.parametrize("verified", [False, True])
def test_dali_decodes_strictly_only_what_nobody_decoded(files, tmp_path, verified):
    pytest.importorskip("nvidia.dali")
    for path in files.glob("copied.beton*"):
        shutil.copy(path, tmp_path)
    beton = tmp_path / "copied.beton"
    alter(beton, 4)
    manifest_path(beton).unlink()
    if verified:
        verify(beton, progress=False)

    class Counting(BetonDataset):
        decoded: ClassVar[list[int]] = []

        def decode(self, sample):
            self.decoded.append(sample)
            return super().decode(sample)

    Counting.decoded.clear()
    order = Sampler(40, 10, seed=0)
    spec = LoaderSpec(
        Counting(beton), order, Crop("whole", 32), 0, torch.device("cpu"), 1, on_bad_sample="skip"
    )
    loader = build_loader("dali", spec)
    assert sum(len(batch.index) for batch in loader) == 40
    loader.close()
    assert set(Counting.decoded) == ({4} if verified else set(range(40)))
