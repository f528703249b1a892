"""Labels of a dataset: one class per image, or several. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64] | NDArray[np.int8]
"""Of shape (n,), int64, -1 for a missing label; or of shape (n, K), int8, if an image can have
several of K classes: 1 present, -1 absent, 0 ignored (difficult, or a crowd)."""

PRESENT, UNCOUNTED, ABSENT = 1, 0, -1
"""The values of labels of shape (n, K)."""


def check_several(labels: Labels, class_names: tuple[str, ...] | None) -> None:
    """Check labels of shape (n, K).

    Raises:
        ValueError: K is not the number of class names, or a value is not 1, 0 or -1.
    """
    if class_names is not None and len(class_names) != labels.shape[1]:
        raise ValueError(f"labels of {labels.shape[1]} classes, but {len(class_names)} class names")
    check_values(labels)


def check_values(labels: NDArray[np.integer[Any]]) -> None:
    """Check that labels of shape (n, K), of any integer type, are all 1, 0 or -1.

    Raises:
        ValueError: a label has another value; the message names the first such sample.
    """
    wrong = np.flatnonzero(((labels < ABSENT) | (labels > PRESENT)).any(axis=1))
    if len(wrong):
        raise ValueError(
            f"sample {wrong[0]}: labels {labels[wrong[0]].tolist()} are not all 1, 0 or -1"
        )
