from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from fastrot.data.sources.find import list_source
from fastrot.data.sources.places205 import NUM_CLASSES
from fastrot.errors import BadDataError, UsageError

IMAGES = "data/vision/torralba/deeplearning/images256"
LETTERS = "bcdefghiklmnoprstuvwy"
CLASSES = (
    *("a/abbey", "a/apartment_building/outdoor"),
    *(f"{LETTERS[i // 10]}/scene_{i:03}" for i in range(2, 205)),
)
TRAIN = [f"{name}/gsun_{i}.jpg {label}" for label, name in enumerate(CLASSES) for i in (1, 2)]
VAL = [f"{name}/gsun_3.jpg {label}" for label, name in enumerate(CLASSES)]


def write_lists(root, train=TRAIN, val=VAL):
    (root / "trainvalsplit_places205").mkdir(parents=True, exist_ok=True)
    for split, lines in (("train", train), ("val", val)):
        path = root / "trainvalsplit_places205" / f"{split}_places205.csv"
        path.unlink(missing_ok=True)  # it may be a hard link
        path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def whole(lay_photos, many_files):
    """Places205's layout with two training images and one other of each class; read only."""
    root = many_files / "places"
    lay_photos(root / IMAGES, [line.split(" ")[0] for line in (*TRAIN, *VAL)])
    write_lists(root)
    return root


@pytest.fixture
def root(whole):
    """The same to change: other lists and other hard links."""
    copy = whole.with_name("copied")
    yield shutil.copytree(whole, copy, copy_function=os.link)
    shutil.rmtree(copy)


@pytest.mark.parametrize("split", ["train", "val"])
def test_prepared_and_in_place(whole, converted, split):
    lines = TRAIN if split == "train" else VAL
    beton, folder = converted(whole, split)
    assert len(beton) == len(folder) == len(lines)
    assert beton.class_names == CLASSES
    expected = {line.split(" ")[0]: int(line.split(" ")[1]) for line in lines}
    found = {
        folder.name(i).partition(f"{IMAGES}/")[2]: int(folder.labels[i]) for i in range(len(folder))
    }
    assert found == expected


@pytest.mark.parametrize("images", [IMAGES, "images256", ""])
def test_lists_and_images_are_found(root, images):
    if images != IMAGES:
        for path in (root / IMAGES).iterdir():
            (root / images).mkdir(exist_ok=True)
            path.rename(root / images / path.name)
        shutil.rmtree(root / "data")
    source = list_source(root, split="val")
    assert source.kind == "places205" and source.class_names == CLASSES
    assert source.labels.tolist() == [int(line.split(" ")[1]) for line in sorted(VAL)]
    assert len(CLASSES) == NUM_CLASSES == 205


def test_one_of_the_lists_will_do(root):
    both = list_source(root, split="val")
    (root / "trainvalsplit_places205" / "train_places205.csv").unlink()
    alone = list_source(root, split="val")
    assert np.array_equal(alone.labels, both.labels) and alone.class_names == both.class_names


def test_the_images_of_the_other_list_need_not_be_there(root):
    for line in TRAIN:
        (root / IMAGES / line.split(" ")[0]).unlink()
    assert len(list_source(root, split="val")) == 205


def test_a_split_must_be_chosen(whole):
    with pytest.raises(UsageError, match="choose --split train or val"):
        list_source(whole)
    with pytest.raises(UsageError, match="not Places205"):
        list_source(whole / "data", kind="places205", split="train")


@pytest.mark.parametrize("wrong", [0, 1, 409])
@pytest.mark.parametrize("split", ["train", "val"])
def test_one_wrong_label_fails_in_either_split(root, refusal, wrong, split):
    """Also in the list of the other split, and whichever line of the class it is."""
    name, _, label = TRAIN[wrong].partition(" ")
    other = (int(label) + 7) % 205
    write_lists(root, train=[*TRAIN[:wrong], f"{name} {other}", *TRAIN[wrong + 1 :]])
    message = refusal(root, split)
    assert f"train_places205.csv: '{name}' has label {other}, but 2 others in its" in message


def test_a_wrong_label_of_the_only_image_of_a_class(root):
    (root / "trainvalsplit_places205" / "train_places205.csv").unlink()
    write_lists(root, val=[VAL[0], "a/apartment_building/outdoor/gsun_3.jpg 0", *VAL[2:]])
    (root / "trainvalsplit_places205" / "train_places205.csv").unlink()
    with pytest.raises(
        BadDataError, match=r"outdoor/gsun_3.jpg' has label 0, but that is the label of 'a/abbey'"
    ):
        list_source(root, split="val")


def test_a_missing_file_fails(root, refusal):
    (root / IMAGES / "a/abbey/gsun_2.jpg").unlink()
    assert "names 1 of 410 images that are not there, the first 'a/abbey/gsun_2.jpg'" in refusal(
        root, "train"
    )


def test_a_line_twice_fails(root, refusal):
    write_lists(root, train=[*TRAIN, TRAIN[3]])
    assert "train_places205.csv: names 'a/apartment_building/outdoor/gsun_2.jpg' twice" in refusal(
        root, "train"
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_list_that_was_cut_short_fails(root, refusal, split):
    write_lists(root, train=TRAIN[:-1])
    message = refusal(root, split)
    assert "1 of 3 images are not in" in message and "the first 'gsun_2.jpg'" in message
    assert "a list was cut short" in message


def test_a_list_of_more_images_than_there_are_fails(root, refusal):
    write_lists(root, val=[*VAL, "a/abbey/gsun_4.jpg 0"])
    assert "names 1 of 206 images that are not there" in refusal(root, "val")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_less_fails_and_says_what_takes_a_part(root, refusal, split):
    write_lists(root, train=TRAIN[:-2], val=VAL[:-1])
    message = refusal(root, split)
    assert "no image of 1 of 205 classes, the first with label 204" in message
    assert "--kind folder" in message


def test_a_part_is_taken_as_class_folders(whole):
    part = list_source(whole / IMAGES / "b", kind="folder")
    assert part.kind == "folder" and part.class_names == tuple(name[2:] for name in CLASSES[2:10])
    assert part.labels.tolist() == np.repeat(np.arange(8), 3).tolist()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a/abbey/9.jpg", r"line 411, 'a/abbey/9.jpg', is not the name"),
        ("a/abbey/9.jpg 205", "label below 205"),
        ("a/abbey/9.jpg -1", "label below 205"),
        ("a/abbey/9.jpg 1e2", "label below 205"),
        ("a/abbey/9.jpg " + "9" * 30, "label below 205"),
        ("7", "line 411, .*label below 205"),
        ("x/xyst/9.jpg 0", "'x/xyst/9.jpg' has label 0, but that is the label of 'a/abbey'"),
    ],
)
def test_lines_that_are_refused(root, line, message):
    write_lists(root, train=(*TRAIN, line))
    with pytest.raises(BadDataError, match=message):
        list_source(root, split="train")
