"""What a detector found in an image, and the checks that its scores deserve to be counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrot.data.annotations.detection import DetectionDataset
from fastrot.data.annotations.outlines import Rle, mask_library
from fastrot.errors import BadDataError, UsageError


@dataclass(frozen=True)
class Detections:
    """The n objects found in one image, in any order; of equal scores the first ranks first.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels of the original image, shape (n, 4), any float type.
        scores: shape (n,), any float type.
        labels: classes, counted from 0, shape (n,), integers.
        masks: in pycocotools' form, see ``encode_masks``; None if only boxes were predicted.
    """

    boxes: NDArray[np.floating[Any]]
    scores: NDArray[np.floating[Any]]
    labels: NDArray[np.integer[Any]]
    masks: Sequence[Rle] | None = None

    def __len__(self) -> int:
        return len(self.scores)


def encode_masks(masks: NDArray[Any]) -> list[Rle]:
    """Encode masks of shape (n, H, W), bool or 0 and 1, as run lengths.

    Raises:
        UsageError: pycocotools is not installed.
    """
    columns = np.asfortranarray(masks.astype(np.uint8).transpose(1, 2, 0))
    return list(mask_library().encode(columns))


def check_detections(dataset: DetectionDataset, detections: Sequence[Detections]) -> None:
    """Check that there is one entry for each image of the dataset, of finite numbers.

    Raises:
        UsageError: the number of images, a shape or a class does not fit.
        BadDataError: a box or a score is NaN or infinite.
    """
    if len(detections) != len(dataset):
        raise UsageError(
            f"detections in {len(detections):,} images, but the dataset has {len(dataset):,}; "
            "give one entry for each, empty where nothing was found"
        )
    classes = dataset.num_classes
    for sample, found in enumerate(detections):
        count = len(found)
        shapes = found.boxes.shape, found.scores.shape, found.labels.shape
        masks = count if found.masks is None else len(found.masks)
        if shapes != ((count, 4), (count,), (count,)) or masks != count:
            raise UsageError(
                f"{dataset.name(sample)}: boxes, scores and labels of shapes {shapes} and {masks} "
                "masks; must be (n, 4), (n,), (n,) and n"
            )
        if count and not 0 <= found.labels.min() <= found.labels.max() < classes:
            raise UsageError(
                f"{dataset.name(sample)}: labels from {found.labels.min()} to "
                f"{found.labels.max()}; the dataset has classes 0 to {classes - 1}"
            )
        if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            raise BadDataError(
                f"{dataset.name(sample)}: a detected box or its score is NaN or infinite, which "
                "has no rank; check the model that gave it"
            )
