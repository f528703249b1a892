"""The outlines of objects as in COCO's files, polygons or run lengths, in a few flat arrays.

A polygon per Python list would take ten times the memory: COCO's training set has 37 million
coordinates. pycocotools turns outlines into pixels, so masks are those of the official tools.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrot.errors import UsageError

Rle = dict[str, Any]
"""A mask as pycocotools has it: ``size`` [height, width] and compressed ``counts``, bytes."""

_HUNDREDTHS = 100
_MAX_BITS = 60  # of one run length
_SLICE = 2**22  # coordinates converted at a time


@dataclass(frozen=True)
class Outlines:
    """The outlines of m objects, which consist of p polygons altogether.

    Attributes:
        points: x, y, x, y ... of all polygons in pixels, float64; or in hundredths of a pixel,
            int32, where that is exact, as it is in COCO.
        polygons: polygon j is ``points[polygons[j] : polygons[j + 1]]``; of shape (p + 1,).
        objects: object i has the polygons ``objects[i]`` to ``objects[i + 1] - 1``; shape (m + 1,).
        runs: lengths of runs by object, for those that have no polygon: pixels outside and inside
            of the mask in turn, column by column; int64.
    """

    points: NDArray[np.float64] | NDArray[np.int32]
    polygons: NDArray[np.int64]
    objects: NDArray[np.int64]
    runs: Mapping[int, NDArray[np.int64]] = field(default_factory=dict)

    def rle(self, row: int, height: int, width: int) -> Rle:
        """Return the mask of one object in an image of this size.

        Raises:
            UsageError: pycocotools is not installed.
        """
        mask = mask_library()
        if row in self.runs:
            counts = {"counts": self.runs[row].tolist(), "size": [height, width]}
            return dict(mask.frPyObjects(counts, height, width))
        first, last = self.objects[row : row + 2].tolist()
        ends = self.polygons[first : last + 1].tolist()
        points = self.points[ends[0] : ends[-1]]
        if points.dtype == np.int32:
            points = points / _HUNDREDTHS  # correctly rounded, so these are the file's numbers
        polygons = [
            points[start - ends[0] : end - ends[0]].tolist()
            for start, end in itertools.pairwise(ends)
        ]
        return dict(mask.merge(mask.frPyObjects(polygons, height, width)))


def mask_library() -> Any:
    """Return the module ``pycocotools.mask``.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError as error:
        raise UsageError(
            f"masks need the package pycocotools ({error}): pip install 'fastrot[eval]'"
        ) from None


def compact(points: NDArray[np.float64]) -> NDArray[np.float64] | NDArray[np.int32]:
    """Return the coordinates in hundredths if that loses nothing, in half the memory."""
    found = np.empty(len(points), np.int32)
    for start in range(0, len(points), _SLICE):
        part = points[start : start + _SLICE]
        scaled = np.rint(part * _HUNDREDTHS)
        if not (np.abs(scaled) < 2**31).all() or (scaled / _HUNDREDTHS != part).any():
            return points
        found[start : start + _SLICE] = scaled
    return found


def read_runs(counts: Any, height: int, width: int) -> NDArray[np.int64]:
    """Return the runs of a mask, given as a list of lengths or as COCO's compressed string.

    Everything is checked here, since the official decoder trusts the lengths.

    Raises:
        ValueError: the runs are not those of a mask of this size.
    """
    lengths = _unpack(counts.encode()) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or set(map(type, lengths)) - {int}:
        raise ValueError("counts is neither a list of whole numbers nor a string of them")
    if negative := [length for length in lengths if length < 0]:
        raise ValueError(f"a run has the negative length {negative[0]:,}")
    if sum(lengths) != height * width:
        raise ValueError(
            f"the run lengths sum to {sum(lengths):,} pixels, but the image has {height * width:,}"
        )
    return np.array(lengths, np.int64)


def _unpack(text: bytes) -> list[int]:
    """Decode numbers of 5 bits a character, lowest first; from the fourth on, differences."""
    lengths: list[int] = []
    values = iter(text)
    for first in values:
        character, number, shift = first - 48, 0, 0
        while True:
            number |= (character & 0x1F) << shift
            shift += 5
            if not character & 0x20:
                break
            character = next(values, 0) - 48
            if character < 0 or shift > _MAX_BITS:
                raise ValueError("the string of run lengths is damaged")
        if character & 0x10:
            number -= 1 << shift
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths


def offsets(counts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each of n groups starts, and the end of the last; of shape (n + 1,)."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)
