"""The confusion matrix of a whole dataset, and the scores that follow from it.

Intersection over union of a class is TP / (TP + FP + FN), over the pixels of all images together.
Pixels whose true label is 255 are ignored. The mean omits a class that is neither there nor
predicted, because it is 0 / 0; a class that is predicted, but not there, has 0. mmsegmentation and
cityscapesScripts define it so, and agree for models that never predict an ignored label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrot.data.annotations.label_maps import IGNORE
from fastrot.errors import BadDataError, UsageError


class ConfusionMatrix:
    """Counts of pixels by true and predicted class.

    Those of several ranks are added up: ``counts`` is the whole state.

    Args:
        num_classes: K, at most 255.

    Attributes:
        counts: row: true class; column: predicted class; shape (K, K), int64.

    Example:
        >>> matrix = ConfusionMatrix(2)
        >>> matrix.add(np.array([[0, 1, 255]], np.uint8), np.array([[0, 0, 1]]))
        >>> matrix.iou()
        array([0.5, 0. ])
    """

    def __init__(self, num_classes: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)

    def add(self, truth: NDArray[np.uint8], predicted: NDArray[Any], name: str = "image") -> None:
        """Count the pixels of one image.

        Args:
            truth: classes and 255, of any shape.
            predicted: classes, integers of the same shape; what they are where truth is 255 does
                not matter.
            name: of the image, for messages.

        Raises:
            UsageError: the shapes differ, or a predicted class does not exist.
            BadDataError: a true class does not exist.
        """
        classes = len(self.counts)
        if truth.shape != predicted.shape:
            raise UsageError(
                f"{name}: labels of shape {truth.shape}, but predictions of {predicted.shape}; "
                "predict at the size of the label map"
            )
        counted = truth != IGNORE
        rows, columns = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
        if rows.size and rows.max() >= classes:
            raise BadDataError(
                f"{name}: has label {rows.max()}, but valid classes are 0 to {classes - 1} "
                f"({IGNORE} is ignored); test data must use the same classes as the training data"
            )
        if columns.size and not 0 <= columns.min() <= columns.max() < classes:
            raise UsageError(
                f"{name}: classes {columns.min()} to {columns.max()} are predicted, but there are "
                f"0 to {classes - 1}"
            )
        cells = np.bincount(rows * classes + columns, minlength=classes**2)
        self.counts += cells.reshape(classes, classes)

    def iou(self) -> NDArray[np.float64]:
        """Return intersection over union by class, of shape (K,); NaN: see above."""
        right = np.diag(self.counts)
        return _divide(right, self.counts.sum(axis=0) + self.counts.sum(axis=1) - right)

    def recall(self) -> NDArray[np.float64]:
        """Return the fraction of each class's pixels that are right, of shape (K,); NaN: none."""
        return _divide(np.diag(self.counts), self.counts.sum(axis=1))

    def mean_iou(self) -> float:
        """Return the mean over classes, from 0 to 1.

        Raises:
            BadDataError: every pixel is ignored.
        """
        self._check()
        return float(np.nanmean(self.iou()))

    def mean_recall(self) -> float:
        """Return the mean over the classes that are there, from 0 to 1.

        Raises:
            BadDataError: every pixel is ignored.
        """
        self._check()
        return float(np.nanmean(self.recall()))

    def pixel_accuracy(self) -> float:
        """Return the fraction of labelled pixels that are classified correctly, from 0 to 1.

        Raises:
            BadDataError: every pixel is ignored.
        """
        self._check()
        return float(np.trace(self.counts) / self.counts.sum())

    def _check(self) -> None:
        if not self.counts.any():
            raise BadDataError(
                f"every pixel is ignored (label {IGNORE}); give data with other labels"
            )


def _divide(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    values = np.full(len(part), np.nan)
    return np.asarray(np.divide(part, whole, out=values, where=whole > 0), np.float64)
