from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastrot.data.sources.class_folders import (
    ImageList,
    check_every_class,
    check_none_unlisted,
    one_folder_a_class,
)
from fastrot.data.sources.listing import SIZES
from fastrot.errors import BadDataError


def listed(*lines, path="list"):
    names = [line.split()[0] for line in lines]
    return ImageList(Path(path), names, np.array([int(line.split()[1]) for line in lines]))


def test_the_folder_of_each_label_over_all_lists():
    lists = [listed("a/1 0", "b/c/1 2"), listed("a/2 0", "d/1 7")]
    assert one_folder_a_class(lists) == {0: "a", 2: "b/c", 7: "d"}


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (("a/1 1", "a/2 0", "a/3 0", "b/1 1", "b/2 1"), (),
         "train: 'a/1' has label 1, but 2 others in its folder have 0"),
        (("a/1 0", "a/2 0", "b/1 1"), ("a/3 1",),
         "val: 'a/3' has label 1, but 2 others in its folder have 0"),
        (("a/1 0", "a/2 0"), ("b/1 0",), "val: 'b/1' has label 0, but that is the label of 'a'"),
        (("b/1 0", "a/1 0", "a/2 0"), (), "train: 'b/1' has label 0, but that is the label of 'a'"),
    ],
)  # fmt: skip
def test_the_wrong_line_is_named(train, val, message):
    with pytest.raises(BadDataError) as error:
        one_folder_a_class([listed(*train, path="train"), listed(*val, path="val")])
    assert str(error.value).startswith(message)


def test_every_class():
    check_every_class(listed("a/1 0", "b/1 1"), 2)
    with pytest.raises(BadDataError, match="no image of 2 of 4 classes, the first with label 1;"):
        check_every_class(listed("a/1 0", "b/1 2"), 4)


def test_an_image_that_no_list_names(tmp_path):
    for name in ("a/1.jpg", "a/2.JPEG", "a/notes.txt", "elsewhere/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    train, val = listed("a/1.jpg 0", "gone/4.jpg 1", path="train"), listed("a/2.JPEG 0", path="val")
    check_none_unlisted(tmp_path, "inat18", {"train": train, "val": val})
    shorter = listed("gone/4.jpg 1", path="train")
    with pytest.raises(
        BadDataError, match=r"a: 1 of 2 images are not in train or val, the first '1\.jpg'"
    ):
        check_none_unlisted(tmp_path, "inat18", {"train": shorter, "val": val})
    check_none_unlisted(tmp_path, "inat18", {"val": val})


@pytest.mark.parametrize("short", [0, 1])
def test_lists_of_the_genuine_lengths_are_whole(tmp_path, short):
    """Whatever else lies in the folders of the archive."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "other.jpg").touch()
    names = [str(i) for i in range(SIZES["inat18", "train"])]
    none = np.zeros(0, np.int64)
    lists = {
        "train": ImageList(Path("train"), names, none),
        "val": ImageList(
            Path("val"), [f"b/{i}" for i in range(SIZES["inat18", "val"] - short)], none
        ),
    }
    names[0] = "a/gone.jpg"
    (tmp_path / "a" / "another.jpg").touch()
    if not short:
        check_none_unlisted(tmp_path, "inat18", lists)
    else:
        with pytest.raises(BadDataError, match="2 of 2 images are not in train or val"):
            check_none_unlisted(tmp_path, "inat18", lists)
