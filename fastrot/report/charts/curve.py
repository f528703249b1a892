"""Quantities of the log that share a unit, over epochs or over time: chart and table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fastrot.report.charts.lines import Line, line_chart, smooth, thin
from fastrot.report.html.blocks import Figure, Key, Table
from fastrot.report.html.text import number, percent, short, whole_percent

_MOST_POINTS = 240
_SMOOTHED_FROM = 40
_TABLE_ROWS = 16

Form = Callable[[float], str]
Records = Sequence[Mapping[str, Any]]
_Points = Sequence[tuple[float, float]]


class Axis(NamedTuple):
    """The horizontal axis.

    Attributes:
        key: key of the position in a record.
        label: title of the axis, with the unit.
        origin: recorded value that is drawn at zero.
        unit: recorded value that corresponds to one unit of the axis.
    """

    key: str = "epoch"
    label: str = "epoch"
    origin: float = 0.0
    unit: float = 1.0


class Curve(NamedTuple):
    """One quantity of the log.

    Attributes:
        name: name in the legend.
        style: class of its colour.
        records: records that hold the values.
        key: key of the value in a record.
        factor: factor that multiplies the values.
        points: mark every value instead of drawing a mean.
    """

    name: str
    style: str
    records: Records
    key: str
    factor: float = 1.0
    points: bool = False


EPOCHS = Axis()


def curve_figure(
    title: str,
    curves: Sequence[Curve],
    form: Form = short,
    *,
    axis: Axis = EPOCHS,
    note: str = "",
    smoothed: bool = True,
    rule: tuple[float, str] | None = None,
    y_from: float | None = None,
    y_to: float | None = None,
) -> Figure | None:
    """Draw curves over common axes, or return None if no curve has a value.

    Args:
        title: title of the figure; if it names an accuracy, the highest value is the best one,
            otherwise the lowest.
        curves: curves of the same unit.
        form: formats a value.
        axis: the horizontal axis.
        note: text below the figure.
        smoothed: draw means of neighbouring points over the values.
        rule: height and name of a reference level.
        y_from: highest value at which the vertical axis may begin.
        y_to: highest value at which it may end.
    """
    lines: list[Line] = []
    keys: list[Key] = []
    said: list[str] = []
    series: dict[str, _Points] = {}
    best = max if "accuracy" in title.lower() else min
    for curve in curves:
        xs, ys = _points(curve, axis)
        known = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None]
        if not known:
            continue
        series[curve.name] = known
        keys.append(Key(curve.style, f"{curve.name}, last {form(known[-1][1])}"))
        x, y = best(known, key=lambda point: point[1])
        said.append(
            f"{curve.name} from {form(known[0][1])} to {form(known[-1][1])} (at "
            f"{short(known[-1][0])}), {'highest' if best is max else 'lowest'} {form(y)} at "
            f"{short(x)}"
        )
        if smoothed and not curve.points and len(xs) >= _SMOOTHED_FROM:
            xs, ys = thin(xs, ys, _MOST_POINTS)
            reach = len(xs) // 40
            lines.append(Line(curve.name, curve.style, xs, ys, faint=True))
            ys = smooth(ys, reach)
            note = f"{note} Bold: mean over {2 * reach + 1} neighbouring points.".strip()
        else:
            kept = _evenly(len(xs), _MOST_POINTS)
            xs, ys = [xs[i] for i in kept], [ys[i] for i in kept]
        lines.append(Line(curve.name, curve.style, xs, ys, points=curve.points))
    if not lines:
        return None
    chart = line_chart(
        lines,
        x_label=axis.label,
        y_format=form,
        y_mark=whole_percent if form is percent else form,
        x_from=0,
        y_from=y_from,
        y_to=y_to,
        rule=rule,
    )
    alt = f"{title} over {axis.label}: {'; '.join(said)}."
    table = _table(series, form, axis.label)
    return Figure(title, chart, alt, table, keys if len(keys) > 1 else (), note)


def values(records: Records, key: str) -> list[float]:
    """Return all finite values of a key, in order."""
    return [value for record in records if (value := number(record, key)) is not None]


def _points(curve: Curve, axis: Axis) -> tuple[list[float], list[float | None]]:
    xs: list[float] = []
    ys: list[float | None] = []
    for record in curve.records:
        at, value = number(record, axis.key), number(record, curve.key)
        x = None if at is None else (at - axis.origin) / axis.unit
        if x is None or x < 0 or (xs and x <= xs[-1]) or curve.key not in record:
            continue
        xs.append(x)
        ys.append(None if value is None else curve.factor * value)
    return xs, ys


def _table(series: Mapping[str, _Points], form: Form, label: str) -> Table:
    """Return evenly spaced values of every curve, in one row where their positions agree."""
    places = sorted({x for points in series.values() for x, _ in _spaced(points)})
    reach = min(_spacing(points) for points in series.values())
    body = [
        [short(x), *(_near(points, x, reach, form) for points in series.values())] for x in places
    ]
    most = max(len(points) for points in series.values())
    title = "Numbers" if most <= _TABLE_ROWS else f"Numbers ({len(places)} of {most:,} records)"
    return Table([label, *series], body, title)


def _spaced(points: _Points) -> _Points:
    return [points[i] for i in _evenly(len(points), _TABLE_ROWS)]


def _evenly(count: int, most: int) -> list[int]:
    """Return at most ``most`` of ``count`` indices, including the first and the last."""
    if count <= most:
        return list(range(count))
    return [(count - 1) * i // (most - 1) for i in range(most)]


def _spacing(points: _Points) -> float:
    """Return the mean distance between neighbours; infinite for one point."""
    return (points[-1][0] - points[0][0]) / (len(points) - 1) if len(points) > 1 else float("inf")


def _near(points: _Points, place: float, reach: float, form: Form) -> str:
    """Return the value nearest to a position; empty if none lies within ``reach``."""
    x, y = min(points, key=lambda point: abs(point[0] - place))
    return form(y) if abs(x - place) <= reach else ""
