"""The scores of boxes and masks against pycocotools and faster-coco-eval, each used on its own."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from fastrot.data.annotations.coco_instances import open_coco
from fastrot.data.annotations.voc_detection import open_voc_detection
from fastrot.errors import BadDataError, UsageError
from fastrot.evaluation.detection.coco_ap import coco_average_precision
from fastrot.evaluation.detection.predictions import Detections, encode_masks
from tests.fastrot.data.annotations.annotated_files import (
    annotation,
    coco_document,
    write_coco,
    write_voc,
)

pytest.importorskip("pycocotools.mask", reason="pip install 'fastrot[eval]'")
pytest.importorskip("faster_coco_eval", reason="pip install 'fastrot[eval]'")

HEIGHT, WIDTH = 30, 40


def official_scores(document, results, kind):
    """The twelve numbers of pycocotools, and of faster-coco-eval used as its page describes."""
    from faster_coco_eval import COCO as FasterCoco
    from faster_coco_eval import COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    numbers = []
    for coco, evaluate in ((COCO, COCOeval), (FasterCoco, COCOeval_faster)):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = coco()
            truth.dataset = copy.deepcopy(
                {key: document[key] for key in ("images", "annotations", "categories")}
            )
            truth.createIndex()
            evaluation = evaluate(truth, truth.loadRes(copy.deepcopy(results)), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        numbers.append([float(value) for value in evaluation.stats[:12]])
    return numbers


def as_results(dataset, detections, kind):
    """Detections in COCO's format for results."""
    results = []
    for i, found in enumerate(detections):
        for j, (x1, y1, x2, y2) in enumerate(found.boxes.astype(np.float64).tolist()):
            results.append(
                {
                    "image_id": dataset.target(i).image_id,
                    "category_id": int(dataset.category_ids[found.labels[j]]),
                    "score": float(found.scores[j]),
                    **(
                        {"bbox": [x1, y1, x2 - x1, y2 - y1]}
                        if kind == "bbox"
                        else {"segmentation": found.masks[j]}
                    ),
                }
            )
    return results


def numbers_of(scores):
    values = [getattr(scores, field.name) for field in fields(scores)[1:]]
    return [-1.0 if math.isnan(value) else value for value in values]


def jittered(dataset, rng, sample):
    """Objects moved by a few pixels, some of another class, some twice, some not found."""
    target = dataset.target(sample)
    masks, boxes = target.masks(), target.boxes
    rows = rng.permutation(np.repeat(np.arange(len(target)), rng.integers(0, 3, len(target))))
    shifts = np.rint(rng.normal(0, 3, (len(rows), 2))).astype(int)
    moved = np.zeros((len(rows), target.height, target.width), np.uint8)
    for out, row, (dx, dy) in zip(moved, rows, shifts, strict=True):
        out[:] = np.roll(masks[row], (dy, dx), axis=(0, 1))
    noise = np.tile(shifts, 2) + rng.normal(0, 1, (len(rows), 4))
    labels = target.labels[rows]
    wrong = rng.random(len(rows)) < 0.1
    labels[wrong] = rng.integers(0, len(dataset.class_names), wrong.sum())
    return Detections(
        boxes=(boxes[rows] + noise).astype(np.float32),
        scores=np.round(rng.random(len(rows)), 1).astype(np.float32),  # with ties
        labels=labels,
        masks=encode_masks(moved),
    )


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_predictions_over_real_annotations(test_data, kind):
    root = test_data("coco-mini")
    data = open_coco(root, "val", partial=True, follow_symlinks=True)
    data = data.select(range(0, 145, 5))
    rng = np.random.default_rng(0)
    detections = [jittered(data, rng, i) for i in range(len(data))]
    detections[3] = empty()
    whole = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    ids = set(data.objects.image_ids.tolist())
    document = {
        "images": [image for image in whole["images"] if image["id"] in ids],
        "annotations": [each for each in whole["annotations"] if each["image_id"] in ids],
        "categories": whole["categories"],
    }
    assert any(each["iscrowd"] for each in document["annotations"])
    scores = coco_average_precision(data, detections, kind)
    by_pycocotools, by_faster = official_scores(document, as_results(data, detections, kind), kind)
    assert numbers_of(scores) == by_faster
    assert numbers_of(scores) == pytest.approx(by_pycocotools, rel=0, abs=1e-12)
    assert 0.05 < scores.ap < 0.9 and scores.ap < scores.ap50
    assert scores.per_class.shape == (80,)
    assert np.nanmean(scores.per_class) == pytest.approx(scores.ap, abs=1e-12)
    there = {each["category_id"] for each in document["annotations"] if not each["iscrowd"]}
    assert np.isnan(scores.per_class).sum() == 80 - len(there)


def random_masks(rng, count):
    """Rectangles with holes; some are empty."""
    masks = np.zeros((count, HEIGHT, WIDTH), np.uint8)
    boxes = np.zeros((count, 4))
    for mask, box in zip(masks, boxes, strict=True):
        x1, x2 = np.sort(rng.integers(0, WIDTH + 1, 2))
        y1, y2 = np.sort(rng.integers(0, HEIGHT + 1, 2))
        mask[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) < 0.9
        box[:] = x1, y1, x2, y2
    return masks, boxes


def random_set(seed, root: Path):
    """A few images of up to six objects; the file as COCO has it, and detections."""
    rng = np.random.default_rng(seed)
    document = coco_document()
    document["annotations"] = []
    detections = []
    counts = rng.integers(0, 7, 3)
    counts[rng.integers(3)] += 1
    # Images are in the order of their names, which is not that of their ids.
    for image, count in zip((9, 8, 7), counts.tolist(), strict=True):
        masks, boxes = random_masks(rng, count)
        for mask, (x1, y1, x2, y2) in zip(encode_masks(masks), boxes.tolist(), strict=True):
            counts_text = mask["counts"].decode()
            document["annotations"].append(
                annotation(
                    len(document["annotations"]) + 1,
                    image,
                    int(rng.choice([1, 13, 90])),
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=float(rng.choice([(x2 - x1) * (y2 - y1), 2000, 10000])),
                    iscrowd=int(rng.random() < 0.2),
                    segmentation={"size": [HEIGHT, WIDTH], "counts": counts_text},
                )
            )
        others, other_boxes = random_masks(rng, int(rng.integers(0, 3)))
        kept = np.flatnonzero(rng.random(count) < 0.7)
        order = rng.permutation(len(kept) + len(others))
        found = np.concatenate([np.roll(masks[kept], rng.integers(-1, 2), 2), others])[order]
        found_boxes = np.concatenate([boxes[kept] + rng.integers(-1, 2), other_boxes])[order]
        detections.append(
            Detections(
                boxes=found_boxes.astype(np.float32),
                scores=rng.integers(1, 5, len(order)) / 4,  # many ties
                labels=rng.integers(0, 3, len(order)),
                masks=encode_masks(found),
            )
        )
    write_coco(root, document)
    return document, open_coco(root, "val", partial=True), detections


@pytest.mark.parametrize("seeds", [range(i, i + 25) for i in range(0, 200, 25)], ids=str)
def test_200_random_sets(tmp_path, seeds):
    """With crowds, ties, images without objects, and images without detections."""
    seen = {"crowd": 0, "no object": 0, "no detection": 0, "defined": 0}
    for seed in seeds:
        document, data, detections = random_set(seed, tmp_path)
        seen["crowd"] += any(each["iscrowd"] for each in document["annotations"])
        seen["no object"] += any(len(data.target(i)) == 0 for i in range(3))
        seen["no detection"] += any(len(found) == 0 for found in detections)
        for kind in ("bbox", "segm"):
            scores = coco_average_precision(data, detections, kind)
            results = as_results(data, detections, kind)
            if results:
                by_pycocotools, by_faster = official_scores(document, results, kind)
                assert numbers_of(scores) == by_faster, seed
                assert numbers_of(scores) == pytest.approx(by_pycocotools, rel=0, abs=1e-12), seed
            seen["defined"] += not math.isnan(scores.ap)
    assert min(seen.values()) > 0, seen


def empty():
    return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), [])


def test_nothing_found_scores_zero_and_nothing_to_find_is_undefined(tmp_path):
    data = open_coco(write_coco(tmp_path, coco_document()), "val", partial=True)
    for kind in ("bbox", "segm"):
        scores = coco_average_precision(data, [empty()] * 3, kind)
        assert scores.ap == scores.ar100 == 0 and scores.per_class.tolist() == [0, 0, 0]
        assert math.isnan(scores.ap_large)
    document = coco_document()
    for each in document["annotations"]:
        each["iscrowd"] = 1
    data = open_coco(write_coco(tmp_path, document), "val", partial=True)
    scores = coco_average_precision(data, [empty()] * 3, "bbox")
    assert math.isnan(scores.ap) and np.isnan(scores.per_class).all()


def test_the_objects_themselves_score_one(tmp_path):
    data = open_coco(write_coco(tmp_path, coco_document()), "val", partial=True)
    detections = []
    for i in range(3):
        target = data.target(i)
        scores = np.full(len(target), 0.5)
        detections.append(Detections(target.boxes, scores, target.labels, target.rles()))
    for kind in ("bbox", "segm"):
        assert coco_average_precision(data, detections, kind).ap == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": np.array([np.nan])}, BadDataError, r"a.png: a detected box .* NaN or infinite"),
        ({"boxes": np.full((1, 4), np.inf)}, BadDataError, "NaN or infinite"),
        (
            {"labels": np.array([3])},
            UsageError,
            "labels from 3 to 3; the dataset has",
        ),
        ({"boxes": np.zeros((2, 4))}, UsageError, r"must be \(n, 4\), \(n,\), \(n,\) and n"),
        ({"masks": None}, BadDataError, "detections without masks"),
    ],
)
def test_what_cannot_be_scored_is_refused(tmp_path, change, error, message):
    data = open_coco(write_coco(tmp_path, coco_document()), "val", partial=True)
    mask = encode_masks(np.ones((1, HEIGHT, WIDTH)))
    good = Detections(np.array([[1.0, 2, 3, 4]]), np.array([0.5]), np.array([1]), mask)
    with pytest.raises(error, match=message):
        coco_average_precision(data, [replace(good, **change), empty(), empty()], "segm")
    with pytest.raises(UsageError, match="detections in 1 images, but the dataset has 3"):
        coco_average_precision(data, [good], "bbox")


def test_masks_are_compared_only_where_there_are_outlines(tmp_path):
    write_voc(tmp_path, 2007, "test", {"000001": []})
    data = open_voc_detection(tmp_path, [(2007, "test")], partial=True)
    assert math.isnan(coco_average_precision(data, [empty()], "bbox").ap)
    with pytest.raises(BadDataError, match="has boxes, but no outlines to compare masks with"):
        coco_average_precision(data, [empty()], "segm")


def test_without_the_packages_one_line_says_what_to_install(tmp_path, monkeypatch):
    data = open_coco(write_coco(tmp_path, coco_document()), "val", partial=True)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UsageError, match=r"faster-coco-eval .*: pip install 'fastrot\[eval\]'"):
        coco_average_precision(data, [empty()] * 3, "bbox")
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(UsageError, match=r"pycocotools .*: pip install 'fastrot\[eval\]'"):
        data.target(0).masks()
