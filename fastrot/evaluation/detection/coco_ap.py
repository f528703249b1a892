"""COCO's average precision of boxes and masks, computed by faster-coco-eval.

That package gives the numbers of pycocotools, the official tool, many times faster. A box has the
area of its sides here and a mask that of its pixels, as in mmdetection and detectron2: it decides
whether a detection counts as small, medium or large.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastrot.data.annotations.detection import DetectionDataset
from fastrot.data.annotations.outlines import mask_library
from fastrot.errors import BadDataError, UsageError
from fastrot.evaluation.detection.predictions import Detections, check_detections

Kind = Literal["bbox", "segm"]

_Annotations = list[dict[str, Any]]


@dataclass(frozen=True)
class CocoScores:
    """The twelve official numbers, from 0 to 1; NaN where there is no object to find.

    Attributes:
        per_class: ``ap`` of each class, shape (K,).
        ap: mean over classes and the thresholds .50, .55 ... .95 of intersection over union.
        ap50: at .50.
        ap75: at .75.
        ap_small: of objects of less than 32 x 32 pixels.
        ap_medium: of objects between the two.
        ap_large: of objects of more than 96 x 96 pixels.
        ar1: mean recall with one detection an image.
        ar10: with 10.
        ar100: with 100, as AP has.
        ar_small: as ``ap_small``.
        ar_medium: as ``ap_medium``.
        ar_large: as ``ap_large``.
    """

    per_class: NDArray[np.float64]
    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float


def coco_average_precision(
    dataset: DetectionDataset, detections: Sequence[Detections], kind: Kind
) -> CocoScores:
    """Score detections by COCO's rules; VOC's difficult objects count like others.

    Args:
        dataset: n images with their objects.
        detections: n entries, in the order of the images.
        kind: ``bbox`` compares boxes, ``segm`` masks.

    Raises:
        UsageError: faster-coco-eval is not installed, or the detections do not fit the dataset.
        BadDataError: a box or score is not finite, or ``segm`` was asked for without masks.
    """
    library = _library()
    check_detections(dataset, detections)
    truth = _index(library, dataset, _truth(dataset, kind))
    found = _index(library, dataset, _found(dataset, detections, kind))
    evaluation = library.COCOeval_faster(truth, found, kind, print_function=_silent)
    evaluation.run()
    stats = [float(value) if value > -1 else float("nan") for value in evaluation.stats[:12]]
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # thresholds, recalls, classes
    per_class = precision.mean(axis=(0, 1))
    per_class[precision[0, 0] == -1] = np.nan
    return CocoScores(per_class, *stats)


def _library() -> Any:
    try:
        return importlib.import_module("faster_coco_eval")
    except ImportError as error:
        raise UsageError(
            f"COCO's average precision needs the package faster-coco-eval ({error}): pip install "
            "'fastrot[eval]'"
        ) from None


def _index(library: Any, dataset: DetectionDataset, annotations: _Annotations) -> Any:
    """Return the library's index of annotations.

    Images have their own ids: of equal scores, that in the image of the lower id ranks first.
    """
    names = dataset.images.class_names
    images = zip(dataset.objects.image_ids.tolist(), dataset.objects.sizes.tolist(), strict=True)
    document = {
        "images": [{"id": i, "width": w, "height": h} for i, (w, h) in images],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)],
        "annotations": annotations,
    }
    return library.COCO(document)


def _truth(dataset: DetectionDataset, kind: Kind) -> _Annotations:
    table = dataset.objects
    if kind == "segm" and table.outlines is None:
        raise BadDataError(f"{dataset.path}: has boxes, but no outlines to compare masks with")
    annotations: _Annotations = []
    for sample, image in enumerate(table.image_ids.tolist()):
        width, height = table.sizes[sample].tolist()
        for thing in table.of_image(sample):
            # Numbered from 1: 0 would mean that nothing was matched.
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": int(thing["label"]) + 1,
                "bbox": thing["box"].tolist(),
                "area": float(thing["area"]),
                "iscrowd": int(thing["iscrowd"]),
            }
            if kind == "segm" and table.outlines is not None:
                annotation["segmentation"] = table.outlines.rle(
                    int(thing["outline"]), height, width
                )
            annotations.append(annotation)
    return annotations


def _found(dataset: DetectionDataset, detections: Sequence[Detections], kind: Kind) -> _Annotations:
    annotations: _Annotations = []
    for image, found in zip(dataset.objects.image_ids.tolist(), detections, strict=True):
        boxes = np.array(found.boxes, np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        if kind == "segm" and found.masks is None and len(found):
            raise BadDataError(f"image {image}: detections without masks; train a mask head")
        areas = boxes[:, 2] * boxes[:, 3]
        if kind == "segm" and found.masks:
            areas = mask_library().area(list(found.masks))
        rows = zip(boxes.tolist(), areas, found.scores.tolist(), found.labels.tolist(), strict=True)
        for row, (box, area, score, label) in enumerate(rows):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": label + 1,
                "bbox": box,
                "area": float(area),
                "score": score,
                "iscrowd": 0,
            }
            if kind == "segm" and found.masks is not None:
                annotation["segmentation"] = found.masks[row]
            annotations.append(annotation)
    return annotations


def _silent(text: str) -> None:
    pass
