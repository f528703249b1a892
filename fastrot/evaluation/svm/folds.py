"""Stratified folds without shuffling: how the published SVM protocol divides its training set.

The same as ``sklearn.model_selection.StratifiedKFold(n_splits)`` for a class present or absent,
for all classes at once. Difficult images are negatives there (protocol voc07-svm), so a caller
passes ``labels == PRESENT``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastrot.errors import TooFewImagesError, UsageError


def stratified_folds(
    positive: NDArray[np.bool_], folds: int = 3, class_names: Sequence[str] | None = None
) -> NDArray[np.int8]:
    """The fold in whose test part each sample is, of the shape of ``positive``.

    Each fold has as many positives and negatives as every other one, give or take one. Samples
    are dealt out in order: the first positives are in fold 0, the last ones in the last fold.

    scikit-learn only warns of a class with fewer positives than folds; then an SVM without a
    positive cannot be fitted, or a fold has no AP, and the mean is NaN. Here it is an error.

    Args:
        positive: of shape (n,) for one class or (n, C) for C.
        folds: from 2 to 127.
        class_names: C names, for the message.

    Raises:
        UsageError: another shape, type or number of folds.
        TooFewImagesError: a class has fewer positives, or fewer negatives, than folds.

    Example:
        >>> stratified_folds(np.array([True, False, True, False, False, False]), 2)
        array([0, 0, 1, 0, 1, 1], dtype=int8)
    """
    if positive.dtype != np.bool_ or positive.ndim not in (1, 2):
        raise UsageError(
            f"positives of shape {positive.shape}, {positive.dtype}: must be bool, (n,) or (n, C)"
        )
    if not 2 <= folds <= 127:
        raise UsageError(f"folds={folds} must be from 2 to 127")
    columns = positive if positive.ndim == 2 else positive[:, None]
    size = len(columns)
    counts = columns.sum(axis=0)
    for what, number in (("positives", counts), ("negatives", size - counts)):
        if (few := np.flatnonzero(number < folds)).size:
            name = class_names[few[0]] if class_names else f"number {few[0]}"
            raise TooFewImagesError(
                f"class {name}: {number[few[0]]} {what} among {size} training images are fewer "
                f"than {folds} folds; leave that class out, add images, or set svm.folds lower"
            )
    if size == 0 or columns.shape[1] == 0:
        return np.zeros(positive.shape, np.int8)
    # scikit-learn puts the value of row 0 first and the other one behind it, and deals this line
    # out like cards: fold i gets places i, i + folds ... Only the numbers of each value count.
    leads = columns == columns[0]
    lead_size = leads.sum(axis=0)
    result = np.empty(columns.shape, np.int8)
    for of_lead in (True, False):
        rows = leads if of_lead else ~leads
        start = np.zeros_like(lead_size) if of_lead else lead_size
        stop = lead_size if of_lead else np.full_like(lead_size, size)
        dealt = np.stack([_multiples(stop - i, folds) - _multiples(start - i, folds)
                          for i in range(folds)])  # fmt: skip
        rank = np.cumsum(rows, axis=0) - 1
        fold = (rank[None] >= np.cumsum(dealt, axis=0)[:, None]).sum(axis=0)
        result[rows] = fold[rows]
    return result.reshape(positive.shape)


def _multiples(below: NDArray[np.int64], of: int) -> NDArray[np.int64]:
    """How many of 0, ``of``, 2 ``of`` ... are less than a number; of a negative one, none."""
    return np.maximum(-(-below // of), 0)
