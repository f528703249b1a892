"""Scores from labels and outputs: average precision, top-k accuracy, means over classes.

Pure functions of numpy arrays; they return fractions from 0 to 1.

Average precision has two definitions here, which differ by points on the same scores:

``voc2010``
    Area under the precision-recall curve after each precision is raised to the largest one at
    the same or a higher recall. VOC has used it since 2010, and so does the published SVM
    protocol (Goyal et al., 2019; MMSelfSup 0.x), even on VOC 2007.
``sklearn``
    Sum of precision times the step in recall, as in ``sklearn.metrics.average_precision_score``.
    The published protocol chooses its costs by it.

Rows with equal scores: ``sklearn`` treats them as one threshold, so their order does not matter.
``voc2010`` ranks row by row, and the LATER of two equal rows comes first, because the public
code reverses an ascending sort. That sort is not stable, so the order among many equal scores
depends on the machine there; here it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastrot.errors import BadDataError, TooFewImagesError, UsageError

Definition = Literal["voc2010", "sklearn"]

_Floats = NDArray[np.floating[Any]]
_BLOCK_BYTES = 2**26  # scores copied and sorted at a time


def average_precision(
    labels: NDArray[Any], scores: NDArray[Any], definition: Definition
) -> NDArray[np.float64]:
    """Return the average precision of one class for each of P columns of scores, of shape (P,).

    Args:
        labels: of shape (n,): bool; or integers 1 present, -1 absent, 0 ignored, as in
            ``fastrot.data.labels``. Integers wider than int8 with 0 and 1 but no -1 are ambiguous
            and refused.
        scores: of shape (n, P), or (n,) for P = 1.
        definition: one of the definitions above.

    Returns:
        Values; NaN in all columns if no row is positive, because recall is undefined then.

    Raises:
        UsageError: shapes do not fit, labels are ambiguous, or the definition is unknown.
        BadDataError: a score is NaN, or every row is ignored.

    Example:
        >>> labels = np.array([True, False, True])
        >>> average_precision(labels, np.array([0.9, 0.8, 0.1]), "sklearn")
        array([0.83333333])
    """
    if definition not in get_args(Definition):
        known = ", ".join(get_args(Definition))
        raise UsageError(f"unknown average precision {definition!r}; choose {known}")
    if scores.ndim == 1:
        scores = scores[:, None]
    if labels.ndim != 1 or scores.ndim != 2 or len(labels) != len(scores):
        raise UsageError(
            f"labels of shape {labels.shape} and scores of shape {scores.shape}: must be (n,) and "
            "(n, P), one row per sample"
        )
    positive, counted = _positives(labels)
    if not counted.any():
        raise BadDataError(
            f"all {len(labels)} rows are marked as ignored; average precision needs others"
        )
    present = np.flatnonzero(positive & counted)
    absent = np.flatnonzero(~positive & counted)
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    results = np.empty(scores.shape[1])
    step = max(1, _BLOCK_BYTES // (len(scores) * max(scores.itemsize, 4)))
    for start in range(0, scores.shape[1], step):
        block = scores[:, start : start + step]
        results[start : start + step] = _of_block(block, present, absent, definition)
    return results


def mean_over_classes(
    values: NDArray[np.float64], class_names: Sequence[str] | None = None
) -> NDArray[np.float64]:
    """Return the mean over the first axis, C classes, of values of shape (C, ...): mAP from AP.

    Args:
        values: NaN for a class without a value, as from ``average_precision`` without a positive.
        class_names: C names, for the message.

    Returns:
        Means of shape ``values.shape[1:]``; of shape () for one value per class.

    Raises:
        TooFewImagesError: a class has no value (NaN).
        BadDataError: there are no classes.
    """
    if len(values) == 0:
        raise BadDataError("a mean over no classes; give values of at least one class")
    lacking = np.flatnonzero(np.isnan(values).reshape(len(values), -1).any(axis=1)).tolist()
    if lacking:
        names = [class_names[i] if class_names else str(i) for i in lacking]
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        raise TooFewImagesError(
            f"{len(names)} of {len(values)} classes have no positives, so their AP is "
            f"undefined: {shown}; give test data that contains them, or exclude them by name"
        )
    return np.asarray(np.mean(values, axis=0))


def top_k_accuracy(labels: NDArray[np.int64], scores: NDArray[Any], k: int = 1) -> float:
    """Return the fraction of samples whose class is among the k classes with the highest scores.

    Equal scores rank the lower class first, as ``argmax`` does: with constant scores the answer
    is class 0, not always correct. With k >= C every sample is correct.

    Args:
        labels: of shape (n,), integers from 0 to C - 1.
        scores: of shape (n, C).
        k: at least 1.

    Raises:
        UsageError: shapes or k do not fit.
        BadDataError: there is no sample, a label is out of range, or a score is NaN.
    """
    if k < 1:
        raise UsageError(f"k={k} must be at least 1")
    if labels.ndim != 1 or scores.ndim != 2 or len(labels) != len(scores):
        raise UsageError(
            f"labels of shape {labels.shape} and scores of shape {scores.shape}: must be (n,) and "
            "(n, C), one row per sample"
        )
    if len(labels) == 0:
        raise BadDataError("accuracy over no samples is undefined; give at least one")
    if (wrong := np.flatnonzero((labels < 0) | (labels >= scores.shape[1]))).size:
        raise BadDataError(
            f"sample {wrong[0]}: label {labels[wrong[0]]} is not one of the {scores.shape[1]} "
            "classes that have scores; test data must have the classes of the training data"
        )
    _refuse_nan(scores)
    return float((label_ranks(labels, scores) < k).mean())


def label_ranks(labels: NDArray[np.int64], scores: NDArray[Any]) -> NDArray[np.int64]:
    """Return the number of classes ranked above each sample's class, of shape (n,).

    Ties rank the lower class first.

    Args:
        labels: of shape (n,), from 0 to C - 1.
        scores: of shape (n, C), without NaN.
    """
    own = np.take_along_axis(scores, labels[:, None].astype(np.int64), axis=1)
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    before = (scores > own).sum(axis=1) + ((scores == own) & earlier).sum(axis=1)
    return np.asarray(before, np.int64)


def _positives(labels: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return masks of the positive rows and of those that are not ignored."""
    if labels.dtype == np.bool_:
        return labels, np.ones(len(labels), np.bool_)
    if not np.issubdtype(labels.dtype, np.signedinteger):
        raise UsageError(f"labels of {labels.dtype}: must be bool, or integers 1, 0 and -1")
    if (wrong := np.flatnonzero((labels < -1) | (labels > 1))).size:
        raise UsageError(
            f"row {wrong[0]}: label {labels[wrong[0]]} is not 1 (present), -1 (absent) or 0 "
            "(ignored); give labels of one class"
        )
    if labels.dtype != np.int8 and (labels == 0).any() and not (labels == -1).any():
        raise UsageError(
            f"labels of {labels.dtype} hold 0 but no -1: absent, or ignored? Give bool, or "
            "int8 if 0 means ignored"
        )
    return labels == 1, labels != 0


def _of_block(
    scores: _Floats, present: NDArray[np.intp], absent: NDArray[np.intp], definition: Definition
) -> NDArray[np.float64]:
    """Return the average precision of a few columns.

    Only positives change recall, and precision peaks at them, so every definition needs only the
    number of rows ranked before each positive: plain sorts and look-ups, without ordering the rows.
    """
    count = len(present)
    if count == 0:
        _refuse_nan(scores)
        return np.full(scores.shape[1], np.nan)
    # From here on, columns of scores are rows. numpy sorts half precision slowly.
    wide = np.float32 if scores.dtype == np.float16 else scores.dtype
    hits = np.ascontiguousarray(scores[present].T, dtype=wide)  # (P, count)
    others = np.ascontiguousarray(scores[absent].T, dtype=wide)
    _refuse_nan(hits)
    _refuse_nan(others)
    ranked = np.sort(hits, axis=1)[:, ::-1]
    others.sort(axis=1)
    before = np.empty((len(hits), count), np.int64)  # negatives that rank before each positive
    for row, (values, sorted_others) in enumerate(zip(ranked, others, strict=True)):
        before[row] = len(absent) - np.searchsorted(sorted_others, values, side="left")
        if definition != "sklearn":
            above = len(absent) - np.searchsorted(sorted_others, values, side="right")
            if (above != before[row]).any():
                before[row] = _before_in_order(scores[:, row], present, absent)
    found = np.broadcast_to(np.arange(1, count + 1), before.shape)
    if definition == "sklearn":
        # Equal positives share one threshold, at which all of them are found.
        last = np.ones(ranked.shape, np.bool_)
        last[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
        found = np.where(last, found, count + 1)
        found = np.minimum.accumulate(found[:, ::-1], axis=1)[:, ::-1]
    precision = found / (found + before)
    if definition == "sklearn":
        return np.asarray(precision.mean(axis=1))
    raised = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(raised.mean(axis=1))


def _before_in_order(
    scores: _Floats, present: NDArray[np.intp], absent: NDArray[np.intp]
) -> NDArray[np.int64]:
    """Count the negatives before each positive, in rank order, with equal scores ordered by row."""
    rows = np.sort(np.concatenate([present, absent]))
    order = rows[np.argsort(scores[rows], kind="stable")[::-1]]
    positive = np.zeros(len(scores), np.bool_)
    positive[present] = True
    hit = positive[order]
    return np.asarray(np.cumsum(~hit)[hit])


def _refuse_nan(scores: _Floats) -> None:
    if np.issubdtype(scores.dtype, np.floating) and np.isnan(scores).any():
        raise BadDataError("a score is NaN, which has no rank; check the model that gave it")
