"""Names of cells: where each lies on the axes that have more than one value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fastrot.report.text import clean, plain

_LONGEST = 60


class AxisNames:
    """The axes of a sweep, in their order, and short names for them.

    Args:
        places: axes of every cell.
    """

    def __init__(self, places: Sequence[Mapping[str, Any]]) -> None:
        self.all = list(dict.fromkeys(axis for axes in places for axis in axes))
        self.values = {axis: values_of(places, axis) for axis in self.all}
        self.varying = [axis for axis in self.all if len(self.values[axis]) > 1]
        ends = Counter(axis.rpartition(".")[2] for axis in self.all)
        self._short = {
            axis: clean(end if ends[end := axis.rpartition(".")[2]] == 1 else axis, _LONGEST)
            for axis in self.all
        }

    def short(self, axis: str) -> str:
        """An axis without its section, if that tells it from the others."""
        return self._short[axis].replace("_", " ")

    def cell(self, axes: Mapping[str, Any], without: Sequence[str] = ()) -> str:
        """Where a cell lies, on one line; axes with one value are told once, by ``fixed``."""
        shown = self.varying or self.all
        parts = [f"{self.short(axis)} {value(axes[axis])}" for axis in shown
                 if axis in axes and axis not in without]  # fmt: skip
        return ", ".join(parts)

    def fixed(self) -> str:
        """The axes that have one value."""
        fixed = [axis for axis in self.all if axis not in self.varying]
        return ", ".join(f"{self.short(axis)} {value(self.values[axis][0])}" for axis in fixed)

    def sort_key(self, axes: Mapping[str, Any]) -> list[tuple[int, float, str]]:
        """Order of the cells: by their axes, numbers as numbers."""
        return [_rank(axes.get(axis)) for axis in self.all]


def place(axes: Mapping[str, Any]) -> str:
    """Where a cell lies, by all its axes: for cells of several sweeps."""
    ends = {axis: clean(axis).rpartition(".")[2].replace("_", " ") for axis in axes}
    return ", ".join(f"{ends[axis]} {value(of_axis)}" for axis, of_axis in axes.items())


def values_of(places: Sequence[Mapping[str, Any]], axis: str) -> list[Any]:
    """The values that an axis takes, each once, in their order."""
    found = {plain(axes[axis]): axes[axis] for axes in places if axis in axes}
    return sorted(found.values(), key=_rank)


def value(of_axis: Any) -> str:
    """A value of an axis as text."""
    return clean("auto" if of_axis is None else plain(of_axis), _LONGEST)


def _rank(of_axis: Any) -> tuple[int, float, str]:
    if isinstance(of_axis, int | float) and not isinstance(of_axis, bool):
        return (0, float(of_axis), "")
    return (1, 0.0, plain(of_axis))
