"""Scales, ticks, means: numbers whose answer is known."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from fastrot.report.charts.lines import Line, line_chart, smooth, thin
from fastrot.report.charts.svg import Scale, ticks


def test_a_scale_is_linear() -> None:
    scale = Scale(10, 20, 100, 0)
    assert [scale(value) for value in (10, 15, 20)] == [100, 50, 0]


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0.3, 0.9), (25, 92), (-3, 3), (1e-9, 2e-9), (5, 5), (0, 0), (1e6, 9e6)],
)
def test_ticks_are_few_even_and_hold_the_values(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 9
    steps = [b - a for a, b in pairwise(marks)]
    assert max(steps) - min(steps) <= 1e-6 * max(steps)


def test_thinning_keeps_the_means() -> None:
    xs, ys = thin(list(range(1000)), [float(x) for x in range(1000)], 100)
    assert len(xs) == 100 and xs[0] == 4.5 and xs[-1] == 994.5
    assert sum(y for y in ys if y is not None) / 100 == 499.5
    assert thin([1, 2], [None, 4.0], 100) == ([1, 2], [None, 4.0])


def test_smoothing_takes_neighbours_that_are_there() -> None:
    assert smooth([0.0, None, 6.0, 3.0], 1) == [0.0, 3.0, 4.5, 4.5]


def test_points_lie_where_their_values_are() -> None:
    line = Line("a", "s1", [0, 1, 2], [0.0, None, 10.0], points=True)
    drawing = line_chart([line], x_label="epoch")
    (path,) = re.findall(r'd="([^"]*)" class="line', drawing)
    assert path == "M50 220M426 16"  # corners of the plot; no line over what is missing
    assert drawing.count("<circle") == 2


def test_values_that_are_all_as_large_as_can_be_are_drawn() -> None:
    drawn = str(line_chart([Line("kNN", "c1", [0, 1], [100.0, 100.0])], x_label="", y_to=100.0))
    assert "nan" not in drawn and ">100<" in drawn
