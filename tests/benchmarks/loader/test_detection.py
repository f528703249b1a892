"""The competitors of the detection benchmark do the same work: same images, boxes and masks."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from fastrot.benchmarks.loader.readers.detection import DetectionJob, detector_batches, open_stream
from tests.fastrot.data.annotations.annotated_files import annotation, coco_document, write_coco

KINDS = ("fastrot", "torchvision", "torchvision-resized")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two images with objects, one of them with two, and one without."""
    document = coco_document()
    document["annotations"][1] = annotation(
        1, 9, 1, bbox=[10, 3, 20, 24], area=480.0, segmentation=[[10, 3, 30, 3, 30, 27, 10, 27]]
    )
    return write_coco(tmp_path, document)


def seen(kind: str, data: Path) -> dict[int, tuple[tuple[int, ...], list[float]]]:
    """Return, by the number of objects, a batch's shape and numbers that no flip changes."""
    job = DetectionJob(str(data), "val", kind, side=60, longest_side=100, batch=1, workers=1)
    found = {}
    for images, (target,) in islice(detector_batches(job), 4):
        boxes, masks = target["boxes"], target["masks"]
        assert masks.shape[1:] == images.shape[2:] or masks.shape[1:] == (60, 80)
        sides = (boxes[:, 2:] - boxes[:, :2]).flatten().tolist()
        areas = masks.flatten(1).float().mean(1).mul(100).tolist()
        levels = images[0, :, :60, :80].mean((1, 2)).mul(10).tolist()
        found[len(boxes)] = tuple(images.shape), [*sides, *areas, *levels]
    return found


def test_all_competitors_deliver_the_same(scenes: Path) -> None:
    ours, *others = (seen(kind, scenes) for kind in KINDS)
    assert ours.keys() == {1, 2}
    for theirs in others:
        assert theirs.keys() == ours.keys()
        for count, (shape, numbers) in ours.items():
            assert theirs[count][0] == shape
            assert theirs[count][1] == pytest.approx(numbers, abs=0.6)


def test_streams_count_images(scenes: Path) -> None:
    for kind in KINDS:
        job = {"data": str(scenes), "split": "val", "kind": kind, "side": 60, "batch": 2}
        assert [each.images for each in islice(open_stream(job).deliveries, 3)] == [2, 2, 2]
