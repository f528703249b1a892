"""Axes have short names that tell them apart, and values in the order of numbers."""

from __future__ import annotations

from fastrot.benchmarks.sweep.report.axes import place, short_names, values_of

AXES = {"data.workers": 1, "a.x_y": 1, "b.x_y": None, "same": True}


def test_axes_are_named_as_briefly_as_they_can_be() -> None:
    assert list(short_names(AXES).values()) == ["workers", "a.x y", "b.x y", "same"]
    assert place(AXES) == "workers 1, a.x y 1, b.x y auto, same true"
    assert place(AXES, ["same", "data.workers"]) == "workers 1, same true"


def test_values_come_once_and_numbers_as_numbers() -> None:
    places = [{"n": value} for value in (10, "z", 2, 10, None, 0.5)] + [{"m": 7}]
    assert values_of(places, "n") == [0.5, 2, 10, None, "z"]
