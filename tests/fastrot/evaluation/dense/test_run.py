"""Each dense protocol is one command, from weights and a dataset's own layout to its scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrot.config import ModelConfig
from fastrot.errors import BadDataError, FastrotError, MismatchError, UsageError
from fastrot.evaluation.command import evaluate
from fastrot.evaluation.run import EvalRequest
from fastrot.evaluation.tables import EvalReport
from fastrot.models.backbones import build_model
from tests.fastrot.data.annotations.annotated_files import (
    coco_document,
    voc_object,
    write_coco,
    write_voc,
)
from tests.fastrot.data.annotations.label_files import (
    random_labels,
    write_cityscapes,
    write_sbd,
    write_voc_segmentation,
)

BRIEF = ["dense.partial=true", "dense.steps=2", "dense.batch=2", "dense.workers=1"]
DETECTION = [
    *BRIEF, "dense.milestones=[]", "detection.sides=[48]", "detection.regions_per_image=8",
    "detection.proposals=[40,20]", "detection.least_score=0.0", "detection.detections=5",
]  # fmt: skip
SEGMENTATION = [*BRIEF, "segmentation.scale=[96,48]", "segmentation.crop=48"]


def voc(root: Path) -> Path:
    both = [voc_object("cat", 3, 3, 20, 20), voc_object("dog", 10, 8, 39, 29)]
    write_voc(root, 2007, "trainval", {"000001": both, "000002": both[:1], "000003": both[1:]})
    return write_voc(root, 2007, "test", {"000004": both, "000005": []})


def coco(root: Path) -> Path:
    return write_coco(root, coco_document())


def voc12(root: Path) -> Path:
    names = {"train": ["2008_000001", "2008_000002"], "val": ["2008_000003"]}
    write_voc_segmentation(root, names)
    write_sbd(root / "sbd", root, {"train": ["2008_000004"], "val": ["2008_000003"]})
    return root


def cityscapes(root: Path) -> Path:
    for split in ("train", "val"):
        scenes = {f"ulm/ulm_{split}_{i}": random_labels(i, [7, 8, 26, 0]) for i in range(2)}
        write_cityscapes(root, split, scenes)
    return root


CASES = {
    "voc0712-det": (voc, [*DETECTION, "dense.train_splits=[2007-trainval]"]),
    "coco-det": (coco, [*DETECTION, "dense.train_splits=[val]"]),
    "voc12aug-seg": (voc12, SEGMENTATION),
    "cityscapes-seg": (
        cityscapes,
        [*SEGMENTATION, "segmentation.test=slide", "segmentation.stride=24"],
    ),
}


def measured(
    run: Path, protocol: str, data: Path, out: Path, *more: str, **how: bool
) -> EvalReport:
    settings = [*CASES[protocol][1], *more]
    if protocol == "voc12aug-seg":
        settings.append(f"dense.sbd={data / 'sbd'}")
    request = EvalRequest(
        checkpoint=run, protocol=protocol, train=data, test=data, overrides=settings, out=out,
        progress=False, **how,
    )  # fmt: skip
    report = evaluate(request, print)
    assert isinstance(report, EvalReport)
    return report


@pytest.mark.parametrize("protocol", CASES)
def test_from_weights_to_scores(protocol: str, small_run: Path, tmp_path: Path) -> None:
    data = CASES[protocol][0](tmp_path / "data")
    out = tmp_path / "out"
    report = measured(small_run, protocol, data, out, beside_random=True)
    (file,) = out.glob("*/result.json")
    result = json.loads(file.read_text())
    metrics = [score["metric"] for score in result["scores"]]
    assert (
        metrics
        == {
            "voc0712-det": ["AP50", "AP50"],
            "coco-det": ["AP", "AP50", "AP75"] * 2,
            "voc12aug-seg": ["mIoU", "mAcc", "aAcc"],
            "cityscapes-seg": ["mIoU", "mAcc", "aAcc"],
        }[protocol]
    )
    assert all(0 <= score["value"] <= 100 for score in result["scores"] + result["random"])
    assert result["label"] == "fine-tuned" and any("not comparable" in n for n in result["notes"])
    assert len(list(out.glob("*/training/checkpoints/step-00000002"))) == 2  # also the random one
    rows = json.loads((file.parent / "pictures" / "pictures.json").read_text())["rows"]
    assert {len(row) for row in rows} == {2 if "det" in protocol else 3}
    assert all((file.parent / "pictures" / each["file"]).exists() for row in rows for each in row)
    # The same command again only reads.
    states = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = measured(small_run, protocol, data, out, beside_random=True)
    assert [s.value for s in again.result.scores] == [s.value for s in report.result.scores]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == states
    assert (
        measured(small_run, protocol, data, out, "dense.workers=2").result.key == again.result.key
    )
    other = measured(small_run, protocol, data, out, "dense.seed=1")
    assert other.result.key != report.result.key and len(list(out.glob("*/result.json"))) == 2


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda root: root / "nowhere", UsageError, "nowhere"),
        (
            lambda root: _remove(root / "VOCdevkit/VOC2007/Annotations/000001.xml"),
            BadDataError,
            "000001.xml",
        ),
        (lambda root: _leave_image(root), BadDataError, "leaves its image of 40 x 30"),
        (
            lambda root: root.with_name("data:2007-trainval"),
            UsageError,
            r"name .*/data alone, .* dense\.train_splits names .*dense\.test_split=2007-trainval$",
        ),
        (
            lambda root: _rename(root / "VOCdevkit/VOC2007/ImageSets/Main/test.txt"),
            UsageError,
            r"has no split '2007-test', but 2007-trainval or 2007-val: dense\.train_splits names",
        ),
        (
            lambda root: _replace(root, "<name>cat<", "<name>lynx<"),
            BadDataError,
            r"class 'lynx' is not one of the 20 of VOC 2007; correct it, or unpack",
        ),
        (lambda root: _replace(root, ">0</diff", ">yes</diff"), BadDataError, "must be 0 or 1"),
    ],
    ids=["no folder", "no annotation", "a box outside", "a split in the path", "no split",
         "a class of one's own", "a mark that is none"],
)  # fmt: skip
def test_wrong_data_is_named_before_anything_is_trained(
    spoil: Callable[[Path], Path], error: type[FastrotError], message: str,
    small_run: Path, tmp_path: Path,
) -> None:  # fmt: skip
    data = spoil(voc(tmp_path / "data"))
    with pytest.raises(error, match=message):
        measured(small_run, "voc0712-det", data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _remove(path: Path) -> Path:
    path.unlink()
    return path.parents[3]


def _rename(path: Path) -> Path:
    path.rename(path.with_name("val.txt"))
    return path.parents[4]


def _replace(root: Path, old: str, new: str) -> Path:
    path = root / "VOCdevkit/VOC2007/Annotations/000001.xml"
    path.write_text(path.read_text().replace(old, new))
    return root


def _leave_image(root: Path) -> Path:
    write_voc(root, 2007, "trainval", {"000001": [voc_object("cat", 3, 3, 60, 20)]})
    return root


def test_another_layout_is_refused_without_options_of_other_commands(
    small_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"not COCO.*; name the folder with both$"):
        measured(small_run, "coco-det", voc(tmp_path / "data"), tmp_path / "out")


def test_a_damaged_image_is_named_without_options_of_other_commands(
    small_run: Path, tmp_path: Path
) -> None:
    data = voc(tmp_path / "data")
    image = data / "VOCdevkit/VOC2007/JPEGImages/000002.jpg"
    image.write_bytes(image.read_bytes()[:-40])
    with pytest.raises(BadDataError, match=r"000002\.jpg.*; repair or remove it$"):
        measured(small_run, "voc0712-det", data, tmp_path / "out", "dense.batch=3")


def test_data_without_an_object_to_learn_is_named(small_run: Path, tmp_path: Path) -> None:
    data = voc(tmp_path / "data")
    write_voc(data, 2007, "trainval", {"000001": [voc_object("cat", 3, 3, 20, 20, difficult=1)]})
    with pytest.raises(BadDataError, match=r"data:2007-trainval: no image has an object to learn"):
        measured(small_run, "voc0712-det", data, tmp_path / "out")


def test_a_network_in_network_does_not_fit(tmp_path: Path) -> None:
    weights = tmp_path / "nin.pth"
    torch.save(build_model(ModelConfig(name="rotnet_nin"), seed=0).backbone.state_dict(), weights)
    with pytest.raises(MismatchError, match="rotnet_nin has no stages for dense tasks") as refused:
        measured(weights, "voc0712-det", voc(tmp_path / "data"), tmp_path / "out")
    assert refused.value.exit_code == 78


def test_data_that_is_not_whole_is_refused_with_the_setting(
    small_run: Path, tmp_path: Path
) -> None:
    data = voc(tmp_path / "data")
    with pytest.raises(BadDataError, match=r"5,011; .*dense\.partial=true"):
        measured(small_run, "voc0712-det", data, tmp_path / "out", "dense.partial=false")


def test_images_without_objects_are_not_trained_on(small_run: Path, tmp_path: Path) -> None:
    """As in mmdetection; they are tested on. Here one of three is left for a batch of two."""
    nothing: dict[str, list[str]] = {"000001": [], "000002": [], "000003": []}
    nothing["000003"] = [voc_object("cat", 3, 3, 20, 20)]
    root = write_voc(tmp_path / "data", 2007, "trainval", nothing)
    write_voc(root, 2007, "test", {"000004": [voc_object("cat", 3, 3, 20, 20)]})
    with pytest.raises(UsageError, match=r"dense\.batch=2 .* set it to 1"):
        measured(small_run, "voc0712-det", root, tmp_path / "out")
    report = measured(small_run, "voc0712-det", root, tmp_path / "out", "dense.batch=1")
    assert np.isfinite(report.result.scores[0].value)
