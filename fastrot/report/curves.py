"""Training curves, throughput and data wait, from the records of ``metrics.jsonl``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fastrot.report.blocks import Figure, Key, Section, Table
from fastrot.report.files import RunFiles
from fastrot.report.lines import Line, line_chart, smooth, thin
from fastrot.report.text import number, percent, short, whole_percent

_MOST_POINTS = 240
_SMOOTHED_FROM = 40
_TABLE_ROWS = 16

Form = Callable[[float], str]
Records = Sequence[Mapping[str, Any]]


class _Curve(NamedTuple):
    """One quantity of the log."""

    name: str
    style: str
    records: Records
    key: str
    factor: float = 1.0
    points: bool = False


def curves_section(run: RunFiles) -> Section:
    """Loss, accuracy, learning rate and gradient norm over epochs."""
    section = Section(
        "curves",
        "Training",
        "Training numbers are means over one interval of the log, on augmented crops, while the "
        "network learns; held-out numbers are of the whole held-out set, on centre crops.",
    )
    train, val = run.training, run.validation
    accuracy = [
        _Curve("training", "s1", train, "accuracy", 100),
        _Curve("held out", "s2", val, "val_accuracy", 100, points=True),
    ]
    neighbours = [_Curve("held-out classes", "s3", val, "val_knn", 100, points=True)]
    for figure in (
        _figure(
            "Loss (cross-entropy)",
            [
                _Curve("training", "s1", train, "loss"),
                _Curve("held out", "s2", val, "val_loss", points=True),
            ],
        ),
        _figure("Rotation accuracy", accuracy, percent, rule=(25.0, "chance, 25 %"), y_to=100),
        _figure(
            "Learning rate",
            [_Curve("learning rate", "s1", train, "learning_rate")],
            smoothed=False,
            y_from=0,
        ),
        _figure(
            "Quick kNN accuracy",
            neighbours,
            percent,
            y_to=100,
            note="20 neighbours in a bank of at most 4,096 labelled training images: a trend to "
            "watch, not a benchmark.",
        ),
        _figure("Gradient norm", [_Curve("gradient norm", "s1", train, "gradient_norm")], y_from=0),
    ):
        if figure is not None:
            section.blocks.append(figure)
    if not section.blocks:
        section.lead = ""
        section.missing.append("training curves: no record of training in metrics.jsonl")
    elif not val:
        section.missing.append("held-out curves: the run has recorded no validation")
    return section


def throughput_section(run: RunFiles) -> Section:
    """Images a second, and the share of time that the step waited for data."""
    section = Section("throughput", "Throughput")
    speed = [_Curve("source images", "s1", run.training, "images_per_second")]
    wait = [_Curve("data wait", "s2", run.training, "data_wait", 100)]
    for figure in (
        _figure("Source images a second", speed, y_from=0),
        _figure("Time spent waiting for data", wait, percent, y_from=0, y_to=100),
    ):
        if figure is not None:
            section.blocks.append(figure)
    speeds = values(run.training, "images_per_second")
    if speeds:
        section.lead = f"Median {short(statistics.median(speeds))} source images a second"
        views = values(run.training, "views_per_second")
        if views:
            section.lead += f", {short(statistics.median(views))} views a second"
        waits = values(run.training, "data_wait")
        if waits:
            section.lead += f"; median data wait {percent(100 * statistics.median(waits))}"
        section.lead += "."
    else:
        section.missing.append("throughput: no record of training in metrics.jsonl")
    return section


def values(records: Records, key: str) -> list[float]:
    """All finite values of a key, in order."""
    return [value for record in records if (value := number(record, key)) is not None]


def _points(curve: _Curve) -> tuple[list[float], list[float | None]]:
    xs: list[float] = []
    ys: list[float | None] = []
    for record in curve.records:
        epoch, value = number(record, "epoch"), number(record, curve.key)
        if epoch is None or (xs and epoch <= xs[-1]) or curve.key not in record:
            continue
        xs.append(epoch)
        ys.append(None if value is None else curve.factor * value)
    return xs, ys


def _figure(
    title: str,
    curves: Sequence[_Curve],
    form: Form = short,
    *,
    note: str = "",
    smoothed: bool = True,
    rule: tuple[float, str] | None = None,
    y_from: float | None = None,
    y_to: float | None = None,
) -> Figure | None:
    lines: list[Line] = []
    keys: list[Key] = []
    said: list[str] = []
    series: dict[str, list[tuple[float, float]]] = {}
    best = max if "accuracy" in title.lower() else min
    for curve in curves:
        xs, ys = _points(curve)
        known = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None]
        if not known:
            continue
        series[curve.name] = known
        keys.append(Key(curve.style, f"{curve.name}, last {form(known[-1][1])}"))
        x, y = best(known, key=lambda point: point[1])
        said.append(
            f"{curve.name} from {form(known[0][1])} to {form(known[-1][1])} "
            f"(epoch {short(known[-1][0])}), {'highest' if best is max else 'lowest'} {form(y)} "
            f"at epoch {short(x)}"
        )
        xs, ys = thin(xs, ys, _MOST_POINTS)
        if smoothed and not curve.points and len(xs) >= _SMOOTHED_FROM:
            reach = len(xs) // 40
            lines.append(Line(curve.name, curve.style, xs, ys, faint=True))
            ys = smooth(ys, reach)
            note = f"{note} Bold: mean over {2 * reach + 1} neighbouring points.".strip()
        lines.append(Line(curve.name, curve.style, xs, ys, points=curve.points))
    if not lines:
        return None
    chart = line_chart(
        lines,
        x_label="epoch",
        y_format=form,
        y_mark=whole_percent if form is percent else form,
        x_from=0,
        y_from=y_from,
        y_to=y_to,
        rule=rule,
    )
    alt = f"{title} over epochs: {'; '.join(said)}."
    return Figure(title, chart, alt, _table(series, form), keys if len(keys) > 1 else (), note)


def _table(series: Mapping[str, Sequence[tuple[float, float]]], form: Form) -> Table:
    """Evenly spaced values of every curve, side by side where they are of the same time."""
    epochs = sorted({x for points in series.values() for x, _ in _spaced(points)})
    body = [[short(x), *(_near(points, x, form) for points in series.values())] for x in epochs]
    most = max(len(points) for points in series.values())
    title = "Numbers" if most <= _TABLE_ROWS else f"Numbers ({len(epochs)} of {most:,} records)"
    return Table(["epoch", *series], body, title)


def _spaced(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    if len(points) <= _TABLE_ROWS:
        return points
    last = len(points) - 1
    return [points[last * i // (_TABLE_ROWS - 1)] for i in range(_TABLE_ROWS)]


def _near(points: Sequence[tuple[float, float]], epoch: float, form: Form) -> str:
    """The value at an epoch; empty where the curve has none within half of its spacing."""
    x, y = min(points, key=lambda point: abs(point[0] - epoch))
    spacing = (points[-1][0] - points[0][0]) / max(1, len(points) - 1)
    return form(y) if abs(x - epoch) <= spacing / 2 else ""
