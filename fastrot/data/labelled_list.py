"""Text files with one image a line: its name, a space, its label. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrot.errors import BadDataError


def read_labelled_list(path: Path, *, num_classes: int) -> tuple[list[str], NDArray[np.int64]]:
    """Names and labels, of shape (n,), in the order of the file.

    Args:
        path: of the file.
        num_classes: labels must be below it.

    Raises:
        BadDataError: a line is something else.
        OSError: as the system reports it.
    """
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    pairs = [line.strip().rpartition(" ") for line in lines if line.strip()]
    try:
        labels = np.array([int(label) for _, _, label in pairs], np.int64)
        wrong = (labels < 0) | (labels >= num_classes)
        wrong |= np.array([not name for name, _, _ in pairs], np.bool_)
    except (ValueError, OverflowError):
        wrong = np.array([not label.isdecimal() for _, _, label in pairs], np.bool_)
    if wrong.any():
        line = " ".join(filter(None, pairs[int(np.argmax(wrong))]))
        raise BadDataError(
            f"{path}: {line[:200]!r} is not the name of an image and a label below {num_classes}; "
            "unpack or make the list again"
        )
    return [name.rstrip() for name, _, _ in pairs], labels
