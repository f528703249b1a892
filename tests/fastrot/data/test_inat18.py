from __future__ import annotations

import json

import pytest

from fastrot.data.sources import list_source
from fastrot.errors import BadDataError, UsageError

NAMES = ["train_val2018/Aves/2761/a.jpg", "train_val2018/Plantae/7477/b.jpg",
         "train_val2018/Aves/2761/c.jpg"]  # fmt: skip


@pytest.fixture
def root(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    document = {
        "info": {"year": 2018},
        "images": [{"id": 10 + i, "file_name": n, "width": 8, "height": 8, "license": 0}
                   for i, n in enumerate(NAMES)],
        "licenses": [{"id": 0, "name": "CC", "url": ""}],
        "annotations": [{"id": 3, "image_id": 12, "category_id": 0},
                        {"id": 4, "image_id": 10, "category_id": 0},
                        {"id": 5, "image_id": 11, "category_id": 2}],
        "categories": [{"id": 2, "name": "7477", "supercategory": "Plantae"},
                       {"id": 0, "name": "2761", "supercategory": "Aves"},
                       {"id": 1, "name": "99", "supercategory": "Aves"}],
    }  # fmt: skip
    (tmp_path / "val2018.json").write_text(json.dumps(document))
    return tmp_path


def test_labels(root):
    source = list_source(root, split="val")
    assert source.kind == "inat18"
    assert source.class_names == ("2761", "99", "7477")
    assert dict(zip(source.paths, source.labels.tolist(), strict=True)) == {
        NAMES[0]: 0, NAMES[1]: 2, NAMES[2]: 0}  # fmt: skip


def test_splits_are_those_of_the_lists(root):
    with pytest.raises(UsageError, match="choose --split val"):
        list_source(root)
    with pytest.raises(UsageError, match="has no split 'train'"):
        list_source(root, split="train")
    with pytest.raises(UsageError, match="not iNaturalist 2018"):
        list_source(root / "train_val2018", kind="inat18", split="val")


@pytest.mark.parametrize("image", [10, 12])
def test_every_image_has_one_class(root, image):
    path = root / "val2018.json"
    document = json.loads(path.read_text())
    document["annotations"][2]["image_id"] = image
    path.write_text(json.dumps(document))
    with pytest.raises(BadDataError, match=r"has [02] annotations, must have one"):
        list_source(root, split="val")
