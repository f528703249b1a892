"""The axes of a sweep: their names, their values, and their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from fastrot.report.html.text import clean, plain

Axes = Mapping[str, Any]


def short_names(axes: Iterable[str]) -> dict[str, str]:
    """Return each axis without its section, unless two would then have the same name."""
    ends = {axis: axis.rpartition(".")[2] for axis in axes}
    uses = Counter(ends.values())
    names = {axis: end if uses[end] == 1 else axis for axis, end in ends.items()}
    return {axis: clean(name, 60).replace("_", " ") for axis, name in names.items()}


def place(axes: Axes, only: Collection[str] | None = None) -> str:
    """Return a cell's point in the grid, as ``workers 2, ranks 1``; ``only`` None: all axes."""
    names = short_names(axes)
    shown = [axis for axis in axes if only is None or axis in only]
    return ", ".join(f"{names[axis]} {value_text(axes[axis])}" for axis in shown)


def values_of(places: Sequence[Axes], axis: str) -> list[Any]:
    """Return the distinct values of an axis, in their order."""
    found = {plain(axes[axis]): axes[axis] for axes in places if axis in axes}
    return sorted(found.values(), key=rank)


def value_text(value: Any) -> str:
    """Return a value of an axis as text."""
    return clean("auto" if value is None else plain(value), 60)


def rank(value: Any) -> tuple[int, float, str]:
    """Return a sort key for values of an axis: numbers come first, in numerical order."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (0, float(value), "")
    return (1, 0.0, plain(value))
