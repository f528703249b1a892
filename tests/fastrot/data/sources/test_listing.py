from __future__ import annotations

import os

import numpy as np
import pytest

from fastrot.data.sources.listing import listed_source
from fastrot.errors import BadDataError
from tests.fastrot.data.sources.trees import tree


def listed(root, names, boundary="root"):
    return listed_source(
        root,
        "imagenet",
        names=names,
        labels=np.arange(len(names)),
        class_names=[str(i) for i in range(len(names))],
        listed_in=root / "list.txt",
        boundary=root.resolve() if boundary == "root" else None,
    )


def test_images_come_in_order_of_their_names_with_their_labels_and_sizes(tmp_path):
    tree(tmp_path, "b/2.jpg", "a/10.jpg", "a/9.jpg", "not/listed.jpg")
    source = listed(tmp_path, ["b/2.jpg", "a/9.jpg", "a/10.jpg"])
    assert source.paths == ("a/10.jpg", "a/9.jpg", "b/2.jpg")
    assert source.labels.tolist() == [2, 1, 0]
    assert source.sizes.tolist() == [8, 7, 7]
    assert source.load(0) == b"a/10.jpg"
    again = listed(tmp_path, ["a/10.jpg", "b/2.jpg", "a/9.jpg"])
    assert again.digest != source.digest, "other labels"


def test_a_file_that_grew_or_shrank_is_read_whole(tmp_path):
    source = listed(tree(tmp_path, "1.jpg"), ["1.jpg"])
    for data in (b"much longer than before", b"", b"xy"):
        (tmp_path / "1.jpg").write_bytes(data)
        assert source.load(0) == data


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "names no image"),
        (["1.jpg", "1.jpg"], "names '1.jpg' twice"),
        (["1.jpg", "a/2.jpg", "gone/3.jpg", "1.jpg/x.jpg"], r"3 of 4 .*first '1\.jpg/x\.jpg' in"),
        (["../x/1.jpg"], "leads out of"),
        (["/etc/hostname"], "leads out of"),
        (["d/1.jpg"], "not a regular file"),
    ],
)
def test_lists_that_are_refused(tmp_path, names, message):
    tree(tmp_path, "1.jpg")
    (tmp_path / "d" / "1.jpg").mkdir(parents=True)
    with pytest.raises(BadDataError, match=message) as error:
        listed(tmp_path, names)
    assert "\n" not in str(error.value)


def test_links_out_need_permission(tmp_path):
    outside = tree(tmp_path / "outside", "1.jpg")
    root = tree(tmp_path / "root", "a/1.jpg")
    (root / "a" / "2.jpg").symlink_to(outside / "1.jpg")
    (root / "b").symlink_to(outside)
    for name in ("a/2.jpg", "b/1.jpg"):
        with pytest.raises(BadDataError, match="a symbolic link out of the dataset"):
            listed(root, ["a/1.jpg", name])
        assert listed(root, ["a/1.jpg", name], boundary=None).sizes.tolist() == [7, 5]
    (root / "a" / "3.jpg").symlink_to("1.jpg")
    assert len(listed(root, ["a/3.jpg"])) == 1
    os.unlink(outside / "1.jpg")
    with pytest.raises(BadDataError, match="does not exist"):
        listed(root, ["a/2.jpg"])
