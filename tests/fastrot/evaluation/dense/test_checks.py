"""Data of a dense protocol that would make a score wrong, stale or impossible is named in time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastrot.data.annotations.cityscapes import open_cityscapes
from fastrot.data.annotations.coco_instances import open_coco
from fastrot.errors import BadDataError, UsageError
from fastrot.evaluation.command import evaluate
from fastrot.evaluation.dense.checks import check_objects, precision_notes
from fastrot.evaluation.dense.settings import DenseConfig
from fastrot.evaluation.dense.training import dense_precision
from fastrot.evaluation.run import EvalRequest
from fastrot.evaluation.tables import EvalReport
from tests.fastrot.data.annotations.annotated_files import (
    annotation,
    coco_document,
    photo,
    voc_object,
    write_coco,
    write_voc,
)
from tests.fastrot.data.annotations.label_files import random_labels, write_cityscapes, write_grey

BRIEF = ["dense.partial=true", "dense.steps=2", "dense.batch=2", "dense.workers=1"]
SCENES = [*BRIEF, "segmentation.scale=[96,48]", "segmentation.crop=48", "segmentation.stride=24"]


def scenes(root: Path) -> Path:
    for split in ("train", "val"):
        labels = {f"ulm/ulm_{split}_{i}": random_labels(i, [7, 8, 26, 0]) for i in range(2)}
        write_cityscapes(root, split, labels)
        for i in range(2):  # else train and val would show the same
            image = root / "leftImg8bit" / split / "ulm" / f"ulm_{split}_{i}_leftImg8bit.png"
            photo(image, seed=i + 10 * (split == "val"))
    return root


def label_file(root: Path, split: str, number: int) -> Path:
    return root / "gtFine" / split / "ulm" / f"ulm_{split}_{number}_gtFine_labelIds.png"


def measured(run: Path, data: Path, out: Path, *more: str, said: list[str] | None = None) -> Any:
    request = EvalRequest(
        checkpoint=run, protocol="cityscapes-seg", train=data, test=data,
        overrides=[*SCENES, *more], out=out, progress=False,
    )  # fmt: skip
    report = evaluate(request, [].append if said is None else said.append)
    assert isinstance(report, EvalReport)
    return report.result


def trainings(out: Path) -> dict[Path, int]:
    """Return the last checkpoint of each training, by the time it was written."""
    return {path: path.stat().st_mtime_ns for path in out.glob("*/training/checkpoints/*/*.json")}


def document(*names: str) -> dict[str, Any]:
    """Return COCO's example with other categories, numbered from 1; the last is seen twice."""
    ids = range(1, len(names) + 1)
    shown = [(3, 7, len(names)), (1, 9, 1), (2, 7, len(names))]
    return {
        **coco_document(),
        "categories": [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)],
        "annotations": [annotation(*each) for each in shown],
    }


def test_classes_are_matched_by_name_and_not_by_their_numbers(tmp_path: Path) -> None:
    train = open_coco(
        write_coco(tmp_path / "a", document("cat", "dog", "cow")), "val", partial=True
    )
    turned = open_coco(write_coco(tmp_path / "b", document("dog", "cat")), "val", partial=True)
    matched = turned.with_classes_of(train)
    assert matched.class_names == ("cat", "dog", "cow")
    names = [
        [(turned.class_names or ())[label] for label in turned.target(i).labels] for i in range(3)
    ]
    assert names == [["dog"], [], ["cat", "cat"]]
    assert [matched.target(i).labels.tolist() for i in range(3)] == [[1], [], [0, 0]]
    assert "lacks 1 of the 3 classes" in matched.note
    assert train.with_classes_of(train) is train
    other = open_coco(write_coco(tmp_path / "c", document("cat", "hen")), "val", partial=True)
    with pytest.raises(BadDataError, match=r"1 of its 2 classes are not among .*: 'hen'"):
        other.with_classes_of(train)


def _another_id(tree: dict[str, Any]) -> None:
    for each in (tree["images"][0], *tree["annotations"]):
        each.update({key: 70 for key in ("id", "image_id") if each.get(key) == 7})


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "run lengths": lambda tree: tree["annotations"][0].update(
        segmentation={"size": [30, 40], "counts": [5, 9, 1186]}
    ),
    "polygons": lambda tree: tree["annotations"][0].update(
        segmentation=[[5, 6, 15, 6, 5, 14], [1, 1, 5, 1, 5, 5]]
    ),
    "a name": lambda tree: tree["categories"][0].update(name="sponge"),
    "an id": _another_id,
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_an_annotation_is_another_data_set(change: str, tmp_path: Path) -> None:
    def opened(tree: dict[str, Any]) -> str:
        return open_coco(write_coco(tmp_path / "data", tree), "val", partial=True).digest

    tree = coco_document()
    crowd = {"size": [30, 40], "counts": [5, 10, 1185]}
    tree["annotations"][0].update(iscrowd=1, segmentation=crowd)
    before = opened(tree)
    assert opened(tree) == before
    CHANGES[change](tree)
    assert opened(tree) != before


def test_the_same_points_in_other_polygons_are_another_data_set(tmp_path: Path) -> None:
    digests = []
    for outline in (
        [[5, 6, 15, 6, 5, 14], [1, 1, 5, 1, 5, 5]],
        [[5, 6, 15, 6, 5, 14, 1, 1, 5, 1, 5, 5]],
    ):
        tree = coco_document()
        tree["annotations"][0]["segmentation"] = outline
        digests.append(open_coco(write_coco(tmp_path, tree), "val", partial=True).digest)
    assert digests[0] != digests[1]


def test_a_repainted_label_map_is_measured_and_not_read(small_run: Path, tmp_path: Path) -> None:
    data, out = scenes(tmp_path / "data"), tmp_path / "out"
    first = measured(small_run, data, out)
    trained = trainings(out)
    assert len(trained) > 0
    path = label_file(data, "val", 0)
    stored = np.array(Image.open(path))
    size = path.stat().st_size
    write_grey(path, np.roll(stored, 7))
    assert open_cityscapes(data, "val", partial=True).digest != first.caches["test"]
    second = measured(small_run, data, out)
    assert second.key != first.key and abs(path.stat().st_size - size) < 100
    assert trainings(out) == trained, "other test data costs no second training"


def test_bad_test_data_is_named_before_the_training(small_run: Path, tmp_path: Path) -> None:
    data, out = scenes(tmp_path / "data"), tmp_path / "out"
    write_grey(label_file(data, "val", 1), np.full((30, 40), 99, np.uint8))
    with pytest.raises(BadDataError, match=r"ulm_val_1_gtFine_labelIds\.png: .* the value 99"):
        measured(small_run, data, out)
    assert not trainings(out)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_labelled_pixel_is_refused(
    split: str, small_run: Path, tmp_path: Path
) -> None:
    data = scenes(tmp_path / "data")
    for number in range(2):
        write_grey(label_file(data, split, number), np.zeros((30, 40), np.uint8))
    with pytest.raises(BadDataError, match=rf"{split}.*every pixel is ignored"):
        measured(small_run, data, tmp_path / "out")


def test_another_way_to_test_trains_nothing_and_other_seeds_do(
    small_run: Path, tmp_path: Path
) -> None:
    data, out = scenes(tmp_path / "data"), tmp_path / "out"
    slid = measured(small_run, data, out)
    trained = trainings(out)
    whole = measured(small_run, data, out, "segmentation.test=whole")
    assert whole.key != slid.key and trainings(out) == trained
    measured(small_run, data, out, "dense.seed=1")
    assert len(trainings(out)) == 2 * len(trained)


def test_testing_on_training_images_is_said_and_kept(small_run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    data = scenes(tmp_path / "data")
    result = measured(small_run, data, tmp_path / "out", "dense.test_split=train", said=said)
    assert any("is the training data" in note for note in result.notes)
    assert any("is the training data" in line for line in said)
    apart = measured(small_run, data, tmp_path / "out")
    assert not any("training" in note for note in apart.notes if "warning" in note)


def test_data_without_an_object_that_counts_is_refused(small_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    cat = [voc_object("cat", 3, 3, 20, 20)]
    write_voc(root, 2007, "trainval", {"000001": cat, "000002": cat})
    write_voc(root, 2007, "test", {"000004": [voc_object("cat", 3, 3, 20, 20, difficult=1)]})
    request = EvalRequest(
        checkpoint=small_run, protocol="voc0712-det", train=root, test=root, progress=False,
        out=tmp_path / "out", overrides=[*BRIEF, "dense.train_splits=[2007-trainval]"],
    )  # fmt: skip
    with pytest.raises(BadDataError, match="2007-test: has no object to find"):
        evaluate(request)
    assert not (tmp_path / "out").exists()
    crowds = coco_document()
    for each in crowds["annotations"]:
        each.update(iscrowd=1, segmentation={"size": [30, 40], "counts": [5, 10, 1185]})
    coco = open_coco(write_coco(tmp_path / "coco", crowds), "val", partial=True)
    with pytest.raises(BadDataError, match="no image has an object to learn"):
        check_objects(coco, coco)


def test_a_missing_year_is_named(small_run: Path, tmp_path: Path) -> None:
    write_voc(tmp_path, 2007, "trainval", {"000001": [voc_object("cat", 3, 3, 20, 20)]})
    request = EvalRequest(
        checkpoint=small_run, protocol="voc0712-det", train=tmp_path, test=tmp_path,
        out=tmp_path / "out", overrides=BRIEF,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"has VOC2007, but no VOC2012.*dense\.train_splits"):
        evaluate(request)


def test_reduced_precision_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision_notes("fp32") == [] and "bf16" in precision_notes("bf16")[0]
    gpu = torch.device("cuda")
    for there, name in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, there=there: there
        )
        assert dense_precision(DenseConfig(), gpu) == name
    assert dense_precision(DenseConfig(), torch.device("cpu")) == "fp32"


def test_json_of_a_result_keeps_the_notes(small_run: Path, tmp_path: Path) -> None:
    data, out = scenes(tmp_path / "data"), tmp_path / "out"
    measured(small_run, data, out)
    (file,) = out.glob("*/result.json")
    assert any("not comparable" in note for note in json.loads(file.read_text())["notes"])
