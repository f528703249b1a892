from __future__ import annotations

import numpy as np
import pytest

from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.digits import write_digits
from fastrot.data.open import open_dataset
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest
from fastrot.data.sources.dataset import FolderDataset
from fastrot.data.sources.find import list_source
from fastrot.errors import BadDataError, UsageError


def test_the_path_decides(test_data, tmp_path):
    assert isinstance(open_dataset(test_data("imagenette-128") / "val"), FolderDataset)
    train, _ = write_digits(tmp_path)
    samples = open_dataset(train)
    assert isinstance(samples, BetonDataset) and samples.has_checksums
    assert not open_dataset(train, checksums=False).has_checksums


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file, not a .beton"),
        (b"\xff\xd8\xff\xe0 and so on", "a JPEG image, not a .beton"),
        (b"<!DOCTYPE html><title>404</title>", "an HTML or XML page"),
        (b"PK\x03\x04 zip", "a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1", "git-lfs pointer"),
        (b"\x02\x00 too short", "fewer than the header"),
    ],
)
def test_a_file_that_is_no_beton(tmp_path, content, message):
    path = tmp_path / "x.beton"
    path.write_bytes(content)
    with pytest.raises(BadDataError, match=message) as error:
        open_dataset(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "what", "split"),
    [("coco-mini", "COCO", "train"), ("voc-mini", "PASCAL VOC", "trainval")],
)
def test_a_split_must_be_named(test_data, name, what, split):
    path = test_data(name)
    with pytest.raises(UsageError) as error:
        open_dataset(path)
    assert str(error.value) == (
        f"{path}: {what}, which has splits: choose one, for example {path}:{split}, or convert it "
        f"for faster reading: fastrot prepare {path} OUT.beton --split {split}"
    )


@pytest.mark.parametrize("name", ["coco-mini:val", "voc-mini:test", "imagenette-128:val"])
def test_a_split_in_place(test_data, name):
    name, _, split = name.partition(":")
    follow = name == "voc-mini"  # its images are links to COCO's
    samples = open_dataset(f"{test_data(name)}:{split}", follow_symlinks=follow)
    source = list_source(test_data(name), split=split, follow_symlinks=follow)
    assert isinstance(samples, FolderDataset) and samples.path.name == f"{name}:{split}"
    assert np.array_equal(samples.labels, source.labels)
    assert samples.class_names == source.class_names and samples.digest == source.digest
    assert samples.read(5).data == source.load(5)
    width, height = samples.sizes(np.array([5]))[0]
    assert samples.decode(5).shape == (height, width, 3)
    again = open_dataset(test_data(name), split=split, follow_symlinks=follow)
    assert again.digest == samples.digest


def test_cifar_in_place_is_pixels(tmp_path, write_cifar10):
    images = write_cifar10(tmp_path / "cifar-10-batches-bin")
    samples = open_dataset(f"{tmp_path}:test")
    labels, planes = images["test_batch.bin"]
    assert samples.labels.tolist() == labels.tolist()
    assert samples.sizes(np.array([0, 2])).tolist() == [[32, 32]] * 2
    pixels = planes[1].transpose(1, 2, 0)
    assert np.array_equal(samples.decode(1), pixels)
    encoded = samples.read(1)
    assert (encoded.kind, encoded.width, encoded.height) == ("raw", 32, 32)
    assert encoded.data == pixels.tobytes()
    prepare(PrepareRequest(tmp_path, tmp_path / "x.beton", split="test", progress=False))
    beton = open_dataset(tmp_path / "x.beton")
    assert sorted(beton.decode(i).tobytes() for i in range(3)) == sorted(
        samples.decode(i).tobytes() for i in range(3)
    )


def test_what_has_no_splits(test_data, tmp_path):
    folder = test_data("imagenette-128") / "val"
    with pytest.raises(UsageError, match="has no split folders"):
        open_dataset(f"{folder}:train")
    with pytest.raises(UsageError, match=r"imagenette-128:test|no such folder; it has train, val"):
        open_dataset(f"{folder.parent}:test")
    coco = test_data("coco-mini")
    with pytest.raises(
        UsageError, match=r"has no split 'test': write .*coco-mini:SPLIT with train2017 or val2017 "
    ):
        open_dataset(f"{coco}:test")
    train, _ = write_digits(tmp_path)
    with pytest.raises(UsageError, match="only a folder of images has splits"):
        open_dataset(train, split="train")
    with pytest.raises(UsageError, match="no such file or folder"):
        open_dataset(f"{train}:train")
    with pytest.raises(UsageError, match="contradicts split='train'"):
        open_dataset(f"{folder.parent}:val", split="train")


def test_a_folder_of_that_very_name_goes_first(tmp_path, lay_photos):
    lay_photos(tmp_path, ["x/train/a/1.jpg", "x:train/b/1.jpg"])
    assert open_dataset(tmp_path / "x:train").class_names == ("b",)
    assert open_dataset(tmp_path / "x", split="train").class_names == ("a",)


def test_wrong_paths(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        open_dataset(tmp_path / "nowhere.beton")
    with pytest.raises(BadDataError, match="holds no image"):
        open_dataset(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(b"x" * 3073)
    with pytest.raises(UsageError, match="fastrot prepare"):
        open_dataset(tmp_path)
