from __future__ import annotations

import numpy as np
import pytest

from fastrot.data.annotations.cityscapes import open_cityscapes
from fastrot.errors import BadDataError, UsageError
from tests.fastrot.data.annotations.annotated_files import SIZE, photo
from tests.fastrot.data.annotations.label_files import random_labels, write_cityscapes

TRAIN_IDS = (
    *[255] * 7, 0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10,
    11, 12, 13, 14, 15, 255, 255, 16, 17, 18,
)  # fmt: skip
"""Train id of each of the 34 ids, as the table of the dataset's scripts lists them."""


@pytest.fixture
def scenes():
    return {
        "ulm/ulm_000001_000019": random_labels(1, list(range(34))),
        "aachen/aachen_000000_000019": random_labels(0, [7, 33]),
    }


@pytest.fixture
def root(tmp_path, scenes):
    return write_cityscapes(tmp_path, "val", scenes)


def test_ids_become_train_ids(root, scenes):
    data = open_cityscapes(root, "val", partial=True)
    assert [data.name(i).split("/")[-2] for i in range(2)] == ["aachen", "ulm"]
    for i, name in enumerate(sorted(scenes)):
        assert np.array_equal(data.target(i).labels, np.array(TRAIN_IDS)[scenes[name]])
    assert set(np.unique(data.target(1).labels)) == {*range(19), 255}
    assert len(data.class_names) == 19
    named = {0: "road", 5: "pole", 10: "sky", 13: "car", 16: "train", 18: "bicycle"}
    assert {k: data.class_names[k] for k in named} == named
    assert data.decode(0).shape == (*SIZE[::-1], 3)


@pytest.mark.parametrize("value", [34, 255])
def test_an_unknown_id_is_refused(tmp_path, value):
    labels = np.zeros(SIZE[::-1], np.uint8)
    labels[0, 39] = value
    data = open_cityscapes(
        write_cityscapes(tmp_path, "val", {"ulm/a": labels}), "val", partial=True
    )
    with pytest.raises(
        BadDataError, match=f"row 0, column 39 has the value {value}; valid are 0 to 33; extract"
    ):
        data.target(0)


def test_a_scene_needs_its_image_and_its_labels(root):
    lost = root / "leftImg8bit" / "val" / "ulm" / "ulm_000001_000019_leftImg8bit.png"
    lost.rename(root / "kept.png")
    with pytest.raises(BadDataError, match=r"names 1 of 2 images that are not there, .*ulm_0"):
        open_cityscapes(root, "val", partial=True)
    (root / "kept.png").rename(lost)
    (root / "gtFine" / "val" / "ulm" / "ulm_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(BadDataError, match=r"1 of 2 images have no label map, .*ulm_0"):
        open_cityscapes(root, "val", partial=True)


def test_what_is_not_there_or_not_whole_is_named(root, tmp_path_factory):
    with pytest.raises(BadDataError, match="2 images, but Cityscapes val has 500"):
        open_cityscapes(root, "val")
    with pytest.raises(UsageError, match="has no split 'train': choose --split val"):
        open_cityscapes(root, "train")
    with pytest.raises(UsageError, match="not Cityscapes, which has leftImg8bit/ and gtFine/"):
        open_cityscapes(root / "gtFine", "val")
    photo(root / "leftImg8bit" / "train" / "ulm" / "other.png")
    with pytest.raises(BadDataError, match=r"no image CITY/x_leftImg8bit.png"):
        open_cityscapes(root, "train")
