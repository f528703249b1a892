from __future__ import annotations

import pytest

from fastrot.data.sources import list_source
from fastrot.errors import BadDataError, UsageError

TRAIN = ("a/abbey/1.jpg 0", "a/abbey/2.jpg 0", "a/apartment_building/outdoor/3.jpg 5")
VAL = ("v/volcano/4.jpg 204", "a/abbey/5.jpg 0")


def make(root, images="data/vision/torralba/deeplearning/images256", train=TRAIN, val=VAL):
    (root / "trainvalsplit_places205").mkdir(parents=True)
    for split, lines in (("train", train), ("val", val)):
        text = "\n".join(lines) + "\n"
        (root / "trainvalsplit_places205" / f"{split}_places205.csv").write_text(text)
        for line in lines:
            name, _, _ = line.rpartition(" ")
            path = root / images / (name or "none")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    return root


@pytest.mark.parametrize("images", ["data/vision/torralba/deeplearning/images256", "images256", ""])
def test_lists_and_images_are_found(tmp_path, images):
    make(tmp_path, images)
    train = list_source(tmp_path, split="train")
    assert train.kind == "places205" and train.labels.tolist() == [0, 0, 5]
    assert train.paths == tuple(line.rpartition(" ")[0] for line in TRAIN)
    val = list_source(tmp_path, split="val")
    assert val.labels.tolist() == [0, 204]
    assert val.class_names == train.class_names, "whichever list is read"
    assert len(val.class_names) == 205
    assert [val.class_names[i] for i in (0, 1, 5, 204)] == [
        *("a/abbey", "class 1", "a/apartment_building/outdoor", "v/volcano")
    ]


def test_a_split_must_be_chosen(tmp_path):
    with pytest.raises(UsageError, match="choose --split train or val"):
        list_source(make(tmp_path))
    with pytest.raises(UsageError, match="not Places205"):
        list_source(tmp_path / "data", kind="places205", split="train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a/abbey/9.jpg", r"line 4, 'a/abbey/9.jpg', is not the name"),
        ("a/abbey/9.jpg 205", "label below 205"),
        ("a/abbey/9.jpg -1", "label below 205"),
        ("a/abbey/9.jpg 1e2", "label below 205"),
        ("a/abbey/9.jpg " + "9" * 30, "label below 205"),
        ("7", "line 4, .*label below 205"),
        ("b/beach/9.jpg 0", "label 0 is of 'a/abbey' and of 'b/beach'"),
    ],
)
def test_lines_that_are_refused(tmp_path, line, message):
    make(tmp_path, train=(*TRAIN, line))
    with pytest.raises(BadDataError, match=message):
        list_source(tmp_path, split="train")
