from __future__ import annotations

import shutil

import numpy as np
import pytest

from fastrot.data.labels import ABSENT, PRESENT, UNCOUNTED
from fastrot.data.sources import list_source
from fastrot.data.voc import CLASSES
from fastrot.errors import BadDataError, UsageError


@pytest.fixture(scope="module")
def mini(test_data, tmp_path_factory):
    """voc-mini with its links resolved."""
    return shutil.copytree(test_data("voc-mini"), tmp_path_factory.mktemp("voc") / "voc")


@pytest.fixture
def copied(mini, tmp_path):
    return shutil.copytree(mini, tmp_path / "voc") / "VOCdevkit" / "VOC2007"


@pytest.mark.parametrize("inside", ["", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_the_folder_is_found_from_each_level(mini, inside):
    source = list_source(mini / inside, split="trainval")
    assert source.kind == "voc07" and len(source) == 272
    assert source.labels.shape == (272, 20) and source.labels.dtype == np.int8
    assert source.class_names == CLASSES
    assert source.paths == tuple(sorted(source.paths))


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_annotations_say_the_same_as_the_lists(copied, split):
    lists = list_source(copied, split=split)
    for path in (copied / "ImageSets" / "Main").glob(f"*_{split}.txt"):
        path.unlink()
    annotations = list_source(copied, split=split)
    assert np.array_equal(annotations.labels, lists.labels)
    assert annotations.digest == lists.digest
    assert {ABSENT, PRESENT} <= set(np.unique(lists.labels)) <= {ABSENT, UNCOUNTED, PRESENT}


def test_the_genuine_lists(test_data, tmp_path):
    """5,011 and 4,952 images; positives and difficult ones as in the lists themselves."""
    lists = shutil.copytree(test_data("voc2007-lists") / "ImageSets", tmp_path / "ImageSets")
    images = tmp_path / "JPEGImages"
    images.mkdir()
    for number in range(1, 9964):
        (images / f"{number:06}.jpg").touch()
    sizes = {"train": 2501, "val": 2510, "trainval": 5011, "test": 4952}
    for split, count in sizes.items():
        source = list_source(tmp_path, split=split)
        assert len(source) == count
        for name in ("aeroplane", "person", "train"):
            lines = (lists / "Main" / f"{name}_{split}.txt").read_text().split("\n")
            values = [int(line.split()[1]) for line in lines if line.strip()]
            column = source.labels[:, CLASSES.index(name)]
            assert column.tolist() == values, "the lists are in order of the ids"


def test_a_split_must_be_chosen_from_those_that_are_there(mini):
    with pytest.raises(UsageError, match="choose --split trainval or test"):
        list_source(mini)
    with pytest.raises(UsageError, match="has no split 'val'"):
        list_source(mini, split="val")
    with pytest.raises(UsageError, match="not VOC 2007"):
        list_source(mini / "VOCdevkit" / "VOC2007" / "JPEGImages", kind="voc07", split="test")


def test_damaged_lists_and_annotations(copied):
    lists = copied / "ImageSets" / "Main"
    whole = (lists / "car_test.txt").read_text()
    (lists / "car_test.txt").write_text(whole.replace(" 1\n", " 2\n", 1))
    with pytest.raises(BadDataError, match=r"car_test.txt: .* is not ID and 1, 0 or -1"):
        list_source(copied, split="test")
    (lists / "car_test.txt").write_text(whole.split("\n", 1)[1])
    with pytest.raises(BadDataError, match=r"car_test.txt: has no label of image '000139'"):
        list_source(copied, split="test")
    (lists / "car_test.txt").unlink()
    annotation = copied / "Annotations" / "000139.xml"
    text = annotation.read_text()
    for bad in (
        text.replace("tvmonitor", "television"),
        text[:100],
        '<!DOCTYPE a [<!ENTITY b "c">]>' + text,
    ):
        annotation.write_text(bad)
        with pytest.raises(BadDataError, match=r"000139.xml: not an annotation of VOC 2007"):
            list_source(copied, split="test")
    annotation.unlink()
    with pytest.raises(BadDataError, match=r"000139\.xml: missing"):
        list_source(copied, split="test")


def test_a_missing_image_is_named(copied):
    (copied / "JPEGImages" / "000139.jpg").unlink()
    with pytest.raises(BadDataError, match=r"test.txt: names 1 of 115 .*JPEGImages/000139.jpg"):
        list_source(copied, split="test")
