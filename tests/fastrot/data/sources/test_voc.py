from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest

from fastrot.data.labels import ABSENT, PRESENT, UNCOUNTED
from fastrot.data.sources.find import list_source, size_note
from fastrot.data.sources.voc import CLASSES
from fastrot.errors import BadDataError, UsageError


@pytest.fixture(scope="module")
def mini(test_data, many_files):
    """voc-mini with its links resolved; read only."""
    return shutil.copytree(test_data("voc-mini"), many_files / "voc")


def link_photo(source, target):
    return os.link(source, target) if source.endswith(".jpg") else shutil.copy(source, target)


@pytest.fixture
def copied(mini):
    """The same to change, but for the photos, which are hard links."""
    copy = mini.with_name("copied")
    yield shutil.copytree(mini, copy, copy_function=link_photo) / "VOCdevkit" / "VOC2007"
    shutil.rmtree(copy)


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


POSITIVES = {
    "trainval": (238, 243, 330, 181, 244, 186, 713, 337, 445, 141,
                 200, 421, 287, 245, 2008, 245, 96, 229, 261, 256),
    "test": (204, 239, 282, 172, 212, 174, 721, 322, 417, 127,
             190, 418, 274, 222, 2007, 224, 97, 223, 259, 229),
}  # fmt: skip
"""Images that show a class, in the order of the classes, by the challenge's statistics."""

DIFFICULT = {
    "trainval": (2, 12, 3, 7, 18, 11, 48, 7, 127, 5, 63, 9, 7, 4, 87, 28, 1, 143, 2, 23),
    "test": (1, 11, 7, 4, 28, 9, 54, 10, 128, 0, 57, 15, 5, 11, 90, 30, 1, 132, 0, 26),
}
"""Images that show a class only in instances marked difficult, counted in the lists by awk."""


@pytest.fixture(scope="module")
def genuine(test_data, many_files):
    """The genuine lists, and a name for each of the 9,963 images."""
    root = many_files / "genuine"
    shutil.copytree(test_data("voc2007-lists") / "ImageSets", root / "ImageSets")
    (root / "JPEGImages").mkdir()
    for number in range(1, 9964):
        (root / "JPEGImages" / f"{number:06}.jpg").touch()
    return root


@pytest.mark.parametrize(
    ("split", "count"), [("trainval", 5011), ("test", 4952), ("train", 2501), ("val", 2510)]
)
def test_the_genuine_lists(genuine, split, count):
    """Each label is that of the raw line; images of a class and difficult ones are as published."""
    source = list_source(genuine, split=split)
    assert len(source) == count
    assert size_note("voc07", split, len(source)) is None
    ids = [path.removeprefix("JPEGImages/").removesuffix(".jpg") for path in source.paths]
    for k, name in enumerate(CLASSES):
        text = (genuine / "ImageSets" / "Main" / f"{name}_{split}.txt").read_text()
        raw = dict(line.split() for line in text.splitlines())
        values = [str(value) for value in source.labels[:, k].tolist()]
        assert dict(zip(ids, values, strict=True)) == raw
        if split in POSITIVES:
            counts = values.count(str(PRESENT)), values.count(str(UNCOUNTED))
            assert counts == (POSITIVES[split][k], DIFFICULT[split][k])
            assert values.count(str(ABSENT)) == count - sum(counts)


def test_a_split_must_be_chosen_from_those_that_are_there(mini):
    with pytest.raises(UsageError, match="choose --split trainval or test"):
        list_source(mini)
    with pytest.raises(UsageError, match="has no split 'val'"):
        list_source(mini, split="val")
    with pytest.raises(UsageError, match="not VOC 2007"):
        list_source(mini / "VOCdevkit" / "VOC2007" / "JPEGImages", kind="voc07", split="test")


@pytest.mark.parametrize(("old", "new"), [("-1", "1"), ("1", "0"), ("1", "-1")])
def test_one_wrong_label_fails(copied, refusal, old, new):
    path = copied / "ImageSets" / "Main" / "car_test.txt"
    lines = path.read_text().splitlines()
    wrong = next(i for i, line in enumerate(lines) if line.split()[1] == old)
    image = lines[wrong].split()[0]
    lines[wrong] = f"{image} {new}"
    path.write_text("\n".join(lines))
    message = refusal(copied, "test")
    assert f"car_test.txt: has {new} for image '{image}', but " in message
    assert f"{image}.xml says {old};" in message


def test_a_missing_file_fails(copied, refusal):
    image = copied / "JPEGImages" / "000139.jpg"
    away = image.rename(copied / "away")
    assert "test.txt: names 1 of 115 images that are not there" in refusal(copied, "test")
    away.rename(image)
    (copied / "Annotations" / "000139.xml").unlink()
    assert "000139.xml: missing, but a split has this image" in refusal(copied, "test")


def test_a_line_twice_fails(copied, refusal):
    lists = copied / "ImageSets" / "Main"
    for name in ("cat_test.txt", "test.txt"):
        path = lists / name
        whole = path.read_text()
        path.write_text(whole + whole.split("\n")[0] + "\n")
        assert f"{name}: " in (message := refusal(copied, "test")) and " twice" in message
        path.write_text(whole)


def test_lists_of_other_lengths_fail(copied, refusal):
    lists = copied / "ImageSets" / "Main"
    whole = (lists / "test.txt").read_text()
    (lists / "test.txt").write_text(whole.partition("\n")[2])
    assert "has 115 images, but the split has 114" in refusal(copied, "test")
    (lists / "test.txt").write_text(whole)
    path = lists / "tvmonitor_test.txt"
    path.write_text(path.read_text().partition("\n")[2])
    assert "tvmonitor_test.txt: has no label for image '000139'" in refusal(copied, "test")


def test_a_wrong_number_of_classes_fails(copied, refusal):
    lists = copied / "ImageSets" / "Main"
    shutil.copy(lists / "car_test.txt", lists / "van_test.txt")
    assert "van_test.txt: not a list of one of the 20 classes of VOC" in refusal(copied, "test")
    (lists / "van_test.txt").unlink()
    (lists / "car_test.txt").unlink()
    message = refusal(copied, "test")
    assert "car_test.txt: missing, but 19 of 20 classes have a list of this split" in message


def test_prepared_and_in_place(mini, converted):
    beton, folder = converted(mini, "test")
    assert beton.class_names == CLASSES and folder.labels.shape == (115, 20)


def test_damaged_lists_and_annotations(copied):
    lists = copied / "ImageSets" / "Main"
    whole = (lists / "car_test.txt").read_text()
    (lists / "car_test.txt").write_text(whole.replace(" 1\n", " 2\n", 1))
    with pytest.raises(BadDataError, match=r"car_test.txt: .* is not ID and 1, 0 or -1"):
        list_source(copied, split="test")
    (lists / "car_test.txt").write_text(whole)
    for path in lists.glob("*_test.txt"):
        path.unlink()
    annotation = copied / "Annotations" / "000139.xml"
    text = annotation.read_text()
    for bad in (
        text[:100],
        '<!DOCTYPE a [<!ENTITY b "c">]>' + text,
    ):
        annotation.write_text(bad)
        with pytest.raises(BadDataError, match=r"000139.xml: not an annotation of VOC 2007"):
            list_source(copied, split="test")


def test_a_mark_of_difficulty_is_0_or_1(copied):
    """Any other was taken for 0, and the object counted."""
    for path in (copied / "ImageSets" / "Main").glob("*_test.txt"):
        path.unlink()
    annotation = copied / "Annotations" / "000139.xml"
    mark = r"<difficult>\d</difficult>"
    annotation.write_text(re.sub(mark, "<difficult>yes</difficult>", annotation.read_text()))
    with pytest.raises(
        BadDataError, match=r"000139\.xml: an object has <difficult>yes</difficult>, .* 0 or 1"
    ):
        list_source(copied, split="test")


def test_a_class_of_ones_own_is_named(copied):
    lists = copied / "ImageSets" / "Main"
    for path in lists.glob("*_test.txt"):
        path.unlink()
    annotation = copied / "Annotations" / "000139.xml"
    annotation.write_text(annotation.read_text().replace("tvmonitor", "helmet"))
    with pytest.raises(BadDataError) as refused:
        list_source(copied, split="test")
    assert str(refused.value) == (
        f"{annotation}: class 'helmet' is not one of the 20 of VOC 2007; to use the images without "
        f"labels name {copied / 'JPEGImages'}"
    )


def test_images_in_no_list_are_counted(copied):
    assert not list_source(copied, split="test").left_out
    (copied / "JPEGImages" / "stray.jpg").write_bytes(b"")
    assert list_source(copied, split="test").left_out.counts == {"in no list": 1}
