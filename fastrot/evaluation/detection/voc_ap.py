"""PASCAL VOC's average precision of boxes, as its development kit defines it.

A detection is right if the object of its class that it overlaps most has an intersection over union
of at least 0.5 with it and no detection of a higher score has taken that object. If the object is
difficult, the detection is ignored. Of equal scores, the earlier image and then the
earlier detection ranks first.

Two definitions summarise the curve of precision over recall, after each precision is raised to the
largest one at the same or a higher recall:

``11point``
    Mean of the precision at the recalls 0, 0.1 ... 1: VOC 2007, and the published row of VOC07+12.
    Whether a recall is reached is decided in whole numbers, so 3 of 10 objects do reach 0.3.
``area``
    Area under the curve, as since VOC 2010.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastrot.data.annotations.detection import DetectionDataset
from fastrot.errors import UsageError
from fastrot.evaluation.detection.predictions import Detections, check_detections

Definition = Literal["11point", "area"]

_POINTS = 10


def voc_average_precision(
    dataset: DetectionDataset,
    detections: Sequence[Detections],
    definition: Definition,
    *,
    overlap: float = 0.5,
) -> NDArray[np.float64]:
    """Return the average precision of each class, from 0 to 1, of shape (K,).

    Args:
        dataset: n images with their objects.
        detections: n entries, in the order of the images.
        definition: one of the definitions above.
        overlap: minimum intersection over union of a right detection.

    Returns:
        Values; NaN for a class without an object that is not difficult: the mean leaves it out.

    Raises:
        UsageError: the detections do not fit the dataset, or the definition is unknown.
        BadDataError: a box or a score is not finite.
    """
    if definition not in get_args(Definition):
        known = ", ".join(get_args(Definition))
        raise UsageError(f"unknown average precision {definition!r}; choose {known}")
    check_detections(dataset, detections)
    objects = dataset.objects.objects
    counts = [len(found) for found in detections]
    image = np.repeat(np.arange(len(detections)), counts)
    empty = np.zeros((0, 4))
    boxes = np.concatenate([empty, *(found.boxes for found in detections)]).astype(np.float64)
    scores = np.concatenate([empty[:, 0], *(found.scores for found in detections)])
    labels = np.concatenate([empty[:, 0], *(found.labels for found in detections)])
    values = np.full(dataset.num_classes, np.nan)
    for label in range(len(values)):
        truth = objects[objects["label"] == label]
        wanted = int((~truth["difficult"]).sum())
        if wanted == 0:
            continue
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        best, iou = _best_objects(truth, image[rows], boxes[rows])
        correct, counted = _judge(best, iou >= overlap, truth["difficult"])
        values[label] = _summarise(correct[counted], wanted, definition)
    return values


def _best_objects(
    truth: NDArray[np.void], image: NDArray[np.int64], boxes: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the object that each of d detections overlaps most, and the overlap.

    Args:
        truth: objects of the class, by image.
        image: of each detection, shape (d,).
        boxes: of the detections, shape (d, 4).

    Returns:
        Positions in ``truth``, -1 if the image has none, and intersections over union; shape (d,).
    """
    best = np.full(len(image), -1)
    overlaps = np.zeros(len(image))
    corners = np.concatenate([truth["box"][:, :2], truth["box"][:, :2] + truth["box"][:, 2:]], 1)
    starts = np.searchsorted(truth["image"], image, "left")
    ends = np.searchsorted(truth["image"], image, "right")
    # One round for the first object of every image, one for the second, and so on.
    for turn in range(int((ends - starts).max(initial=0))):
        rows = np.flatnonzero(starts + turn < ends)
        against = starts[rows] + turn
        found = _intersection_over_union(boxes[rows], corners[against])
        better = (found > overlaps[rows]) | (best[rows] < 0)
        best[rows[better]], overlaps[rows[better]] = against[better], found[better]
    return best, overlaps


def _intersection_over_union(
    boxes: NDArray[np.float64], others: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the overlap of each pair of boxes x1, y1, x2, y2, both of shape (d, 4)."""
    low = np.maximum(boxes[:, :2], others[:, :2])
    high = np.minimum(boxes[:, 2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = [np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), axis=1) for b in (boxes, others)]
    union = areas[0] + areas[1] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros(len(union)), where=union > 0))


def _judge(
    best: NDArray[np.int64], hit: NDArray[np.bool_], difficult: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which detections, in order of their scores, are right, and which are counted."""
    on_difficult = hit.copy()
    on_difficult[hit] = difficult[best[hit]]
    candidates = np.flatnonzero(hit & ~on_difficult)
    _, first = np.unique(best[candidates], return_index=True)
    correct = np.zeros(len(best), np.bool_)
    correct[candidates[first]] = True
    return correct, ~on_difficult


def _summarise(correct: NDArray[np.bool_], wanted: int, definition: Definition) -> float:
    """Return the average precision of ranked detections of a class with ``wanted`` objects."""
    found = np.cumsum(correct)
    precision: NDArray[Any] = found / np.arange(1, len(found) + 1)
    raised = np.maximum.accumulate(precision[::-1])[::-1]
    if definition == "area":
        return float(raised[correct].sum() / wanted)
    points = np.arange(_POINTS + 1)
    reached = np.searchsorted(found * _POINTS, points * wanted, "left")
    return float(np.append(raised, 0.0)[reached].mean())
