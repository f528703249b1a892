"""Test images that are training images are found, whatever their files and names are."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from fastrot.data.open import open_dataset
from fastrot.data.overlap import find_overlap
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest


@pytest.fixture
def photos(lay_photos, tmp_path):
    """Twelve real photos in two classes, and six other ones."""
    names = [f"train/{'ab'[i % 2]}/{i}.jpg" for i in range(12)]
    lay_photos(tmp_path, [*names, *(f"other/{'ab'[i % 2]}/{i}.jpg" for i in range(6))])
    return tmp_path


def shard(path: Path, files: list[Path]) -> Path:
    with tarfile.open(path, "w") as archive:
        for i, file in enumerate(files):
            archive.add(file, f"{path.stem}-{i}.jpg")
    return path


def overlap(train: Path | str, test: Path | str):
    return find_overlap(open_dataset(train), open_dataset(test))


def test_other_images_are_no_overlap(photos):
    found = overlap(photos / "train", photos / "other")
    assert found == (0, 6, False) and found.warning(open_dataset(photos / "other")) == ""


def test_copies_subsets_and_new_names_are_found(photos):
    shutil.copytree(photos / "train", photos / "copy")
    (photos / "part" / "a").mkdir(parents=True)
    shutil.copy(photos / "train" / "a" / "4.jpg", photos / "part" / "a" / "new name.jpg")
    for test in ("train", "copy", "part"):
        found = overlap(photos / "train", photos / test)
        assert found.all_of_them
        assert "is the training data" in found.warning(open_dataset(photos / test))


def test_some_training_images_among_the_test_images_are_counted(photos):
    shutil.copy(photos / "train" / "b" / "5.jpg", photos / "other" / "b" / "5.jpg")
    found = overlap(photos / "train", photos / "other")
    assert found == (1, 6, False)
    assert "1 of 6 images of" in found.warning(open_dataset(photos / "other"))


def test_shards_that_are_copies_or_among_those_of_training(photos):
    files = sorted((photos / "train").rglob("*.jpg"))
    one, two = shard(photos / "s-0.tar", files[:6]), shard(photos / "s-1.tar", files[6:])
    shutil.copy(two, photos / "copy.tar")
    assert overlap(photos / "s-{0..1}.tar", one).all_of_them
    assert overlap(two, photos / "copy.tar").all_of_them
    assert overlap(photos / "train", two).all_of_them
    assert overlap(one, two) == (0, 6, False)


def test_beton_files_without_their_manifest_and_of_one_folder(photos):
    for name, more in (("x", {}), ("small", {"max_side": 64}), ("kept", {"copy": True})):
        out = photos / f"{name}.beton"
        prepare(PrepareRequest(photos / "train", out, progress=False, workers=0, **more))
    shutil.copy(photos / "x.beton", photos / "bare.beton")
    assert overlap(photos / "x.beton", photos / "bare.beton").all_of_them
    assert overlap(photos / "x.beton", photos / "small.beton").all_of_them
    assert overlap(photos / "train", photos / "kept.beton").all_of_them


def test_folders_that_agree_in_names_and_sizes_alone_are_different(tmp_path):
    for part, value in (("one", 0), ("two", 9)):
        folder = tmp_path / part / "a"
        folder.mkdir(parents=True)
        header = b"P6 4 4 255\n"
        (folder / "1.ppm").write_bytes(header + bytes([value] * 48))
    one, two = open_dataset(tmp_path / "one"), open_dataset(tmp_path / "two")
    assert one.digest == two.digest
    assert find_overlap(one, two) == (0, 1, False)
