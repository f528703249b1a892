"""Text files with one image a line: its name, a space, its label. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrot.errors import BadDataError

_NUMBER = re.compile(r"[0-9]{1,9}")


def read_labelled_list(path: Path, *, num_classes: int) -> tuple[list[str], NDArray[np.int64]]:
    """Names and labels, of shape (n,), in the order of the file.

    Args:
        path: of the file.
        num_classes: labels must be below it.

    Raises:
        BadDataError: a line is something else.
        OSError: as the system reports it.
    """
    names: list[str] = []
    labels: list[int] = []
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            *name, label = line.rsplit(maxsplit=1) or [""]
            # At most nine digits and no sign: int() would take more than a list has.
            if name and _NUMBER.fullmatch(label) and int(label) < num_classes:
                names.append(name[0].lstrip())
                labels.append(int(label))
            elif label:
                raise BadDataError(
                    f"{path}: line {number}, {line.strip()[:200]!r}, is not the name of an image "
                    f"and a label below {num_classes}; unpack or make the list again"
                )
    return names, np.array(labels, np.int64)
