"""Line charts: quantities over training, scores over the number of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from fastrot.report.charts.svg import WIDTH, Scale, drawing, element, hint, label, path, ticks
from fastrot.report.html.text import short

_HEIGHT = 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 14.0, 16.0, 40.0


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        name: name shown when the pointer rests on a point.
        style: class of its colour.
        xs: positions, increasing.
        ys: one value per position; None where there is none.
        faint: draw thin, as raw values behind a smoothed line.
        dashed: draw dashed, to be distinguishable without colour.
        points: mark every value.
    """

    name: str
    style: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    faint: bool = False
    dashed: bool = False
    points: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_format: Callable[[float], str] = short,
    y_mark: Callable[[float], str] | None = None,
    x_from: float | None = None,
    y_from: float | None = None,
    y_to: float | None = None,
    rule: tuple[float, str] | None = None,
    places: Sequence[str] | None = None,
) -> Markup:
    """Draw lines over common axes.

    Args:
        lines: lines with at least one value among them.
        x_label: title of the horizontal axis.
        y_format: formats a value.
        y_mark: formats the numbers on the vertical axis; None: like values.
        x_from: where the horizontal axis begins; None: at the first value.
        y_from: highest value at which the vertical axis may begin; None: near the smallest value.
        y_to: highest value at which it may end; None: near the largest value.
        rule: height and name of a reference level.
        places: names of x = 0, 1, 2 ... if the horizontal axis is not numeric.
    """
    ys = [y for line in lines for y in line.ys if y is not None]
    xs = [x for line in lines for x in line.xs]
    xs += [] if x_from is None else [x_from]
    if rule is not None:
        ys.append(rule[0])
    low = min([*ys, *([] if y_from is None else [y_from])])
    marks = ticks(low, max(ys), 5)
    if y_to is not None:
        marks = [mark for mark in marks if mark <= y_to]
        if len(marks) == 1:  # all values are at the maximum
            marks = ticks(0.9 * marks[0], marks[0], 5)
    y = Scale(marks[0], max(marks[-1], max(ys)), _HEIGHT - _BOTTOM, _TOP)
    if places is None:
        x_marks = [x for x in ticks(min(xs), max(xs), 6) if min(xs) <= x <= max(xs)] or [min(xs)]
        x = Scale(min(xs), max(max(xs), min(xs) + 1e-9), _LEFT, WIDTH - _RIGHT)
        names = [short(mark) for mark in x_marks]
    else:
        x_marks = [float(place) for place in range(len(places))]
        x = Scale(-0.3, len(places) - 0.7, _LEFT, WIDTH - _RIGHT)
        names = list(places)
    parts = [
        *_levels(y, marks, y_mark or y_format),
        *(
            label(x(m), _HEIGHT - _BOTTOM + 16, n, "middle")
            for m, n in zip(x_marks, names, strict=True)
        ),
        label((_LEFT + WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_label, "middle", "soft"),
    ]
    if rule is not None:
        at = y(rule[0])
        parts.append(element("path", d=path([(_LEFT, at), (WIDTH - _RIGHT, at)]), class_="rule"))
        parts.append(label(WIDTH - _RIGHT, at - 4, rule[1], "end", "soft"))
    for line in lines:
        parts += _draw(line, x, y, y_format, places)
    return drawing(_HEIGHT, *parts)


def _levels(y: Scale, marks: Sequence[float], form: Callable[[float], str]) -> list[Markup]:
    parts = []
    for mark in marks:
        at = y(mark)
        parts.append(element("path", d=path([(_LEFT, at), (WIDTH - _RIGHT, at)]), class_="grid"))
        parts.append(label(_LEFT - 6, at + 4, form(mark), "end"))
    return parts


def _draw(
    line: Line,
    x: Scale,
    y: Scale,
    form: Callable[[float], str],
    places: Sequence[str] | None,
) -> list[Markup]:
    at = [
        None if value is None else (x(place), y(value))
        for place, value in zip(line.xs, line.ys, strict=True)
    ]
    kind = "faint" if line.faint else "dashed" if line.dashed else "solid"
    parts = [element("path", d=path(at), class_=f"line {kind} {line.style}")]
    if line.faint:
        return parts
    shown = [i for i, point in enumerate(at) if point is not None]
    for i in shown if line.points else shown[-1:]:
        point, value = at[i], line.ys[i]
        assert point is not None and value is not None
        place = short(line.xs[i]) if places is None else places[int(line.xs[i])]
        text = hint(f"{line.name}: {form(value)} at {place}")
        parts.append(
            element("circle", text, cx=point[0], cy=point[1], r=3.2, class_=f"dot {line.style}")
        )
    return parts


def thin(
    xs: Sequence[float], ys: Sequence[float | None], most: int
) -> tuple[list[float], list[float | None]]:
    """Reduce a series to at most ``most`` points: means of neighbours, in x as in y."""
    if len(xs) <= most:
        return list(xs), list(ys)
    edges = [len(xs) * i // most for i in range(most + 1)]
    pairs = [(xs[a:b], [y for y in ys[a:b] if y is not None]) for a, b in pairwise(edges)]
    return [sum(x) / len(x) for x, _ in pairs], [sum(y) / len(y) if y else None for _, y in pairs]


def smooth(ys: Sequence[float | None], reach: int) -> list[float | None]:
    """Return means over ``reach`` neighbours on either side, fewer at the ends."""
    out: list[float | None] = []
    for i in range(len(ys)):
        near = [y for y in ys[max(0, i - reach) : i + reach + 1] if y is not None]
        out.append(sum(near) / len(near) if near else None)
    return out
