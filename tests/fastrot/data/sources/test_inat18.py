from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastrot.data.sources.find import list_source
from fastrot.data.sources.inat18 import NUM_CLASSES
from fastrot.errors import BadDataError, UsageError

FOLDERS = [f"train_val2018/{('Plantae', 'Aves', 'Fungi')[i % 3]}/{i}" for i in range(NUM_CLASSES)]
FIRST = {"train": 1, "val": 437514}
"""The number of the first image of a list."""


def document(split):
    """The original format; the list is not in the order of the ids, nor of the classes."""
    order = np.random.default_rng(len(split)).permutation(NUM_CLASSES).tolist()
    first = FIRST[split]
    images = [{"id": first + i, "file_name": f"{FOLDERS[i]}/{split}{i:05}.jpg", "width": 128,
               "height": 128, "license": 0, "rights_holder": "x"} for i in order]  # fmt: skip
    annotations = [{"id": first + i, "image_id": first + i, "category_id": i}
                   for i in reversed(order)]  # fmt: skip
    categories = [{"id": i, "name": str(i), "supercategory": folder.split("/")[1]}
                  for i, folder in enumerate(FOLDERS)][::-1]  # fmt: skip
    return {"info": {"year": 2018}, "images": images, "annotations": annotations,
            "licenses": [{"id": 0, "name": "CC", "url": ""}], "categories": categories}  # fmt: skip


@pytest.fixture(scope="module")
def whole(lay_photos, many_files):
    """Both lists, an image of each of the 8,142 classes in either; the photos of val only."""
    for split in FIRST:
        (many_files / f"{split}2018.json").write_text(json.dumps(document(split)))
    return lay_photos(many_files, (f"{folder}/val{i:05}.jpg" for i, folder in enumerate(FOLDERS)))


@pytest.fixture
def changed(whole):
    """Changes a list, for one test."""
    kept: dict[Path, str] = {}

    def change(split, edit):
        path = whole / f"{split}2018.json"
        kept.setdefault(path, path.read_text())
        text = json.loads(path.read_text())
        edit(text)
        path.write_text(json.dumps(text))
        return whole

    yield change
    for path, text in kept.items():
        path.write_text(text)


def test_prepared_and_in_place(whole, converted):
    beton, folder = converted(whole, "val")
    assert len(beton) == 8142
    assert beton.class_names == tuple(str(i) for i in range(8142)), "in order of the ids"
    listed = json.loads((whole / "val2018.json").read_text())
    name_of = {image["id"]: image["file_name"] for image in listed["images"]}
    expected = {name_of[a["image_id"]]: a["category_id"] for a in listed["annotations"]}
    found = {
        str(Path(folder.name(i)).relative_to(whole)): int(folder.labels[i])
        for i in range(len(folder))
    }
    assert found == expected


def test_splits_are_those_of_the_lists(whole):
    with pytest.raises(UsageError, match="choose --split train or val"):
        list_source(whole)
    with pytest.raises(UsageError, match="has no split 'test'"):
        list_source(whole, split="test")
    with pytest.raises(UsageError, match="not iNaturalist 2018"):
        list_source(whole / "train_val2018", kind="inat18", split="val")


def test_one_wrong_label_fails_in_either_split(changed, refusal):
    def edit(text):
        (wrong,) = [a for a in text["annotations"] if a["category_id"] == 63]
        wrong["category_id"] = 64

    root = changed("train", edit)
    for split in ("train", "val"):
        assert (
            "train2018.json: 'train_val2018/Plantae/63/train00063.jpg' has label 64, but that is "
            "the label of 'train_val2018/Aves/64'"
        ) in refusal(root, split)


def test_a_missing_file_fails(whole, refusal):
    image = whole / FOLDERS[77] / "val00077.jpg"
    away = image.rename(whole / "elsewhere")
    try:
        message = refusal(whole, "val")
    finally:
        away.rename(image)
    assert "names 1 of 8,142 images that are not there" in message and "val00077.jpg" in message
    assert "names 8,142 of 8,142 images that are not there" in refusal(whole, "train")


def test_an_image_twice_fails(changed, refusal):
    def edit(text):
        image = text["images"][3]
        text["images"].append(image | {"id": 999999})
        kept = {a["image_id"]: a for a in text["annotations"]}
        text["annotations"].append(kept[image["id"]] | {"id": 999999, "image_id": 999999})

    assert "val2018.json: names 'train_val2018/" in (
        message := refusal(changed("val", edit), "val")
    )
    assert " twice" in message


def test_an_id_twice_fails(changed, refusal):
    def edit(text):
        text["images"].append(text["images"][3])

    assert "two entries have the image id" in refusal(changed("val", edit), "val")


@pytest.mark.parametrize("more", [0, 2])
def test_every_image_has_one_class(changed, refusal, more):
    """As many annotations as images."""

    def edit(text):
        one = text["annotations"].pop()
        text["annotations"] += [one | {"id": 999990 + i} for i in range(more)]

    assert f"has {more} annotations but must have one" in refusal(changed("val", edit), "val")


def test_a_list_that_was_cut_short_fails(whole, refusal, lay_photos):
    """The folder of a class has an image that neither list names."""
    folder = FOLDERS[5]
    lay_photos(whole, [f"{folder}/{name}.jpg" for name in ("more", "train00005")])
    try:
        message = refusal(whole, "val")
    finally:
        for name in ("more", "train00005"):
            (whole / folder / f"{name}.jpg").unlink()
    assert "1 of 3 images are not in" in message and "the first 'more.jpg'" in message


def test_a_class_less_fails_and_says_what_takes_a_part(changed, refusal):
    def no_category(text):
        text["categories"] = [c for c in text["categories"] if c["id"] != 8141]
        text["annotations"] = [a for a in text["annotations"] if a["category_id"] != 8141]

    message = refusal(changed("val", no_category), "val")
    assert "8,141 categories instead of the 8,142" in message and "--kind folder" in message


def test_a_class_without_images_fails(changed, refusal):
    def no_image(text):
        (gone,) = [a["image_id"] for a in text["annotations"] if a["category_id"] == 7]
        text["annotations"] = [a for a in text["annotations"] if a["image_id"] != gone]
        text["images"] = [i for i in text["images"] if i["id"] != gone]

    message = refusal(changed("val", no_image), "val")
    assert "no image of 1 of 8,142 classes, the first with label 7" in message


def test_both_lists_have_the_same_categories(changed):
    def rename(text):
        text["categories"][0]["name"] = "another"

    with pytest.raises(BadDataError, match=r"train2018.json: its categories differ .*val2018.json"):
        list_source(changed("train", rename), split="val")


def test_a_part_is_taken_as_class_folders(whole):
    part = list_source(whole / "train_val2018" / "Aves", kind="folder")
    assert part.kind == "folder" and len(part.class_names) == 2714
