"""Labels of a data set: one class an image, or several. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastrot.errors import BadDataError, MismatchError

Labels = NDArray[np.int64] | NDArray[np.int8]
"""Of shape (n,), int64, -1 where there is none; or of shape (n, K), int8, for K classes of which
an image can have several: 1 present, -1 absent, 0 not to be counted (difficult, or a crowd)."""

PRESENT, UNCOUNTED, ABSENT = 1, 0, -1
"""The values of labels of shape (n, K)."""


def check_several(labels: Labels, class_names: tuple[str, ...] | None) -> None:
    """Check labels of shape (n, K).

    Raises:
        ValueError: K is not the number of class names, or a value is none of the three.
    """
    if class_names is not None and len(class_names) != labels.shape[1]:
        raise ValueError(f"labels of {labels.shape[1]} classes, but {len(class_names)} class names")
    wrong = np.flatnonzero(((labels < ABSENT) | (labels > PRESENT)).any(axis=1))
    if len(wrong):
        raise ValueError(
            f"sample {wrong[0]}: labels {labels[wrong[0]].tolist()} are not all 1, 0 or -1"
        )


class Labelled(Protocol):
    """What has labels: samples, or features of them."""

    @property
    def path(self) -> Path:
        """What the user named."""
        ...

    @property
    def labels(self) -> Labels:
        """Of shape (n,) or (n, K)."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One per class, or None when unknown."""
        ...


def check_same_classes(train: Labelled, test: Labelled) -> None:
    """Check that a label means the same class in the training set and in the test set.

    Where one of the two has no class names, only the numbers can be compared.

    Raises:
        BadDataError: one of the two has an image without a label.
        MismatchError: other classes, another order, or several classes an image in only one.
    """
    for part in (train, test):
        missing = np.flatnonzero(part.labels < 0 if part.labels.ndim == 1 else [])
        if len(missing):
            raise BadDataError(
                f"{part.path}: {len(missing):,} of {len(part.labels):,} images have no label "
                f"(first: number {missing[0]}); label or remove them"
            )
    rule = "training and test data must have the same classes"
    if train.labels.ndim != test.labels.ndim:
        one, several = (train, test) if train.labels.ndim == 1 else (test, train)
        raise MismatchError(f"{one.path} has one class an image and {several.path} several; {rule}")
    names, others = train.class_names, test.class_names
    if names is not None and others is not None:
        if names != others:
            raise MismatchError(
                f"{_first_difference(train.path, names, test.path, others)}; {rule}"
            )
    elif train.labels.ndim == 2:
        if train.labels.shape[1] != test.labels.shape[1]:
            raise MismatchError(
                f"{train.path} has labels of {train.labels.shape[1]} classes and {test.path} of "
                f"{test.labels.shape[1]}; {rule}"
            )
    else:
        known = int(train.labels.max(initial=-1)) + 1 if names is None else len(names)
        if (worst := int(test.labels.max(initial=-1))) >= known:
            raise MismatchError(
                f"{test.path}: label {worst}, but {train.path} has {known:,} classes; {rule}"
            )


def count_classes(train: Labelled, test: Labelled, sizes: tuple[int, int]) -> int:
    """The number of classes of two data sets that have one label an image.

    Args:
        train: with labels of shape (n,).
        test: with labels of shape (m,).
        sizes: n and m.

    Raises:
        BadDataError: no images, several labels an image, not one label for each, or one that
            is none of the named classes.
        MismatchError: as ``check_same_classes``.
    """
    for part, size in zip((train, test), sizes, strict=True):
        if part.labels.ndim != 1:
            raise BadDataError(
                f"{part.path}: an image has several of {part.labels.shape[1]} classes, and this "
                "protocol needs one each; use voc07-svm"
            )
        if len(part.labels) != size:
            raise BadDataError(
                f"{part.path}: {len(part.labels)} labels for {size} images; there must be one each"
            )
        if not size:
            raise BadDataError(f"{part.path}: no images; name data that has some")
    names = train.class_names or test.class_names
    for part in (train, test):
        named, highest = part.class_names or names, int(part.labels.max())
        if named is not None and highest >= len(named):
            raise BadDataError(
                f"{part.path}: label {highest} is none of the {len(named)} classes that have "
                "names; give train and test the same classes"
            )
    check_same_classes(train, test)
    return int(train.labels.max()) + 1 if names is None else len(names)


def _first_difference(
    path: Path, names: tuple[str, ...], other: Path, others: tuple[str, ...]
) -> str:
    if len(names) == len(others):
        i = next(i for i, pair in enumerate(zip(names, others, strict=True)) if pair[0] != pair[1])
        return f"class {i} is {names[i]!r} in {path} and {others[i]!r} in {other}"
    counts = f"{path} has {len(names):,} classes and {other} {len(others):,}"
    for where, here, there in ((path, names, others), (other, others, names)):
        if only := sorted(set(here) - set(there)):
            return f"{counts}: {only[0]!r} is only in {where}"
    return counts
