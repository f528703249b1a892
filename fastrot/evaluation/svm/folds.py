"""Stratified folds without shuffling, as the published SVM protocol divides its training set.

Difficult images are negatives there (protocol voc07-svm), so a caller passes ``labels == PRESENT``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from fastrot.errors import TooFewImagesError, UsageError


def stratified_folds(
    positive: NDArray[np.bool_], folds: int = 3, class_names: Sequence[str] | None = None
) -> NDArray[np.int8]:
    """Return the fold whose test set contains each sample, of the shape of ``positive``.

    A class with fewer positives than folds is an error: an SVM without a positive cannot be
    fitted, or a fold has no AP, and the mean is NaN. scikit-learn only warns.

    Args:
        positive: of shape (n, C).
        folds: from 2 to 127.
        class_names: C names, for the message.

    Raises:
        UsageError: the number of folds is out of range.
        TooFewImagesError: a class has fewer positives, or fewer negatives, than folds.

    Example:
        >>> stratified_folds(np.array([True, False, True, False, False, False])[:, None], 2)[:, 0]
        array([0, 0, 1, 0, 1, 1], dtype=int8)
    """
    if not 2 <= folds <= 127:
        raise UsageError(f"folds={folds} must be from 2 to 127")
    size, counts = len(positive), positive.sum(axis=0)
    for what, number in (("positives", counts), ("negatives", size - counts)):
        if (few := np.flatnonzero(number < folds)).size:
            name = class_names[few[0]] if class_names else f"number {few[0]}"
            raise TooFewImagesError(
                f"class {name}: {number[few[0]]} {what} among {size} training images are fewer "
                f"than {folds} folds; remove that class, add images, or set svm.folds lower"
            )
    result = np.zeros(positive.shape, np.int8)
    for column, values in zip(result.T, positive.T, strict=True):
        for fold, (_, test) in enumerate(StratifiedKFold(folds).split(values, values)):
            column[test] = fold
    return result
