from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from fastrot.data.sources.coco import read_annotations
from fastrot.data.sources.find import list_source
from fastrot.errors import BadDataError, UsageError


@pytest.fixture
def copied(test_data, tmp_path):
    root = tmp_path / "coco"
    shutil.copytree(test_data("coco-mini") / "annotations", root / "annotations")
    (root / "val2017").symlink_to(test_data("coco-mini") / "val2017")
    return root


def change(root, edit):
    path = root / "annotations" / "instances_val2017.json"
    document = json.loads(path.read_text())
    edit(document)
    path.chmod(0o644)
    path.write_text(json.dumps(document))


def test_labels_are_those_of_the_annotations(test_data):
    root = test_data("coco-mini")
    for split, count in (("train", 336), ("val", 145), ("val2017", 145)):
        source = list_source(root, split=split)
        assert source.kind == "coco" and source.labels.shape == (count, 80)
        year = split if split.endswith("2017") else f"{split}2017"
        document = json.loads((root / "annotations" / f"instances_{year}.json").read_text())
        names = {image["id"]: image["file_name"] for image in document["images"]}
        categories = {c["id"]: c["name"] for c in document["categories"]}
        assert source.class_names == tuple(categories[i] for i in sorted(categories))
        expected = {(names[a["image_id"]], categories[a["category_id"]])
                    for a in document["annotations"]}  # fmt: skip
        rows, columns = np.nonzero(source.labels == 1)
        found = {(source.paths[r], source.class_names[c])
                 for r, c in zip(rows, columns, strict=True)}  # fmt: skip
        assert found == expected
        assert source.load(3)[:2] == b"\xff\xd8"


def test_a_crowd_alone_is_not_counted(copied):
    def crowd(document):
        first = document["annotations"][0]
        first["iscrowd"] = 1
        alone = dict(first, category_id=document["categories"][-1]["id"])
        document["annotations"] = [first, alone, dict(first, iscrowd=0)]

    change(copied, crowd)
    labels = list_source(copied, split="val", follow_symlinks=True).labels
    assert np.sort(labels, axis=None)[-3:].tolist() == [-1, 0, 1]
    assert (labels == -1).sum() == labels.size - 2, "an image without annotations shows nothing"


def test_a_split_must_be_chosen_and_its_images_be_there(copied, test_data):
    with pytest.raises(UsageError, match="choose --split train2017 or val2017"):
        list_source(copied)
    with pytest.raises(UsageError, match="has no split 'test'"):
        list_source(copied, split="test")
    with pytest.raises(UsageError, match="train2017: no such folder; extract the images"):
        list_source(copied, split="train")
    with pytest.raises(UsageError, match="not COCO"):
        list_source(copied / "val2017", kind="coco", split="val", follow_symlinks=True)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["annotations"][0].update(category_id=91), "category_id 91, which is not"),
        (lambda d: d["annotations"][0].update(image_id=1), "image_id 1, which is not"),
        (lambda d: d["images"].append(d["images"][0]), "two entries have the image id"),
        (
            lambda d: d["images"][0].update(file_name=3),
            "'images' lacks a value or has one of the",
        ),
        (lambda d: d["categories"].append({}), "'categories' lacks a value"),
        (lambda d: d.pop("annotations"), "no list 'annotations'"),
        (lambda d: d["images"][0].update(file_name="../x.jpg"), "leads out of"),
        (lambda d: d["images"][0].update(file_name="gone.jpg"), "names 1 of 145 images"),
    ],
)
def test_annotations_that_are_refused(copied, edit, message):
    change(copied, edit)
    with pytest.raises(BadDataError, match=message) as error:
        list_source(copied, split="val", follow_symlinks=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000])
def test_what_is_no_annotation_file(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadDataError, match=r"a.json: not annotations in COCO's format"):
        read_annotations(tmp_path / "a.json")


def test_images_in_no_list_are_counted(copied):
    assert not list_source(copied, split="val", follow_symlinks=True).left_out
    photos = (copied / "val2017").resolve()
    (copied / "val2017").unlink()
    shutil.copytree(photos, copied / "val2017", symlinks=True)
    (copied / "val2017" / "stray.jpg").write_bytes(b"")
    left_out = list_source(copied, split="val", follow_symlinks=True).left_out
    assert left_out.counts == {"in no list": 1}
