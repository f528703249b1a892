"""The low-shot curve: mAP over labelled images per class, beside the published curve."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fastrot.evaluation.published import PAGE, RANDOM, PublishedRow, published
from fastrot.evaluation.result import Result
from fastrot.report.charts.lines import Line, line_chart
from fastrot.report.html.blocks import Figure, Key, Table
from fastrot.report.html.text import clean, percent, short
from fastrot.report.run.results import Found, notes

_NAME = re.compile(r"(\d{1,6})-shot(?: (.+))?")
_PUBLISHED = (
    ("published (layer3)", PAGE, "s3"),
    ("published random initialisation", RANDOM, "s4"),
)

_NOTE = "The chart shows the layer with the best mean score."

Curve = dict[int, float]


def is_lowshot(result: Result) -> bool:
    """Return whether all scores are named by a number of labels per class."""
    return bool(result.scores) and all(_NAME.fullmatch(score.name) for score in result.scores)


def lowshot_figures(one: Found) -> list[Figure]:
    """Return one chart per metric, of the best layer; its table holds all layers."""
    metrics = sorted({score.metric for score in one.result.scores})
    return [_figure(one, metric) for metric in metrics]


def _figure(one: Found, metric: str) -> Figure:
    ours = _curves({(s.name, s.metric): s.value for s in one.result.scores}, metric)
    random = _curves(one.random, metric)
    whose, style = one.whose
    best = max(ours, key=lambda layer: _mean(ours[layer]))
    drawn: list[tuple[str, str, Curve, bool]] = [(_named(whose, best), style, ours[best], False)]
    if random:
        layer = max(random, key=lambda name: _mean(random[name]))
        drawn.append((_named("random initialisation", layer), "s2", random[layer], False))
    used: list[PublishedRow] = []
    for name, source, colour in _PUBLISHED:
        rows = [
            row
            for row in published(one.result.protocol)
            if row.source == source and row.metric == metric
        ]
        curve = _curves({(row.name, metric): row.value for row in rows}, metric)
        if curve:
            used += rows[:1]
            drawn.append((name, colour, next(iter(curve.values())), True))
    shots = sorted({shot for _, _, curve, _ in drawn for shot in curve})
    lines = [
        Line(
            name,
            style,
            [float(i) for i in range(len(shots))],
            [curve.get(shot) for shot in shots],
            dashed=dashed,
            points=True,
        )
        for name, style, curve, dashed in drawn
    ]
    columns = drawn[1:]
    table = Table(
        ["labels per class", *(_named(whose, n) for n in ours), *(name for name, *_ in columns)],
        [
            [
                f"{shot}",
                *(_cell(ours[n], shot) for n in ours),
                *(_cell(c[2], shot) for c in columns),
            ]
            for shot in shots
        ],
    )
    said = ", ".join(f"{percent(value)} with {shot}" for shot, value in sorted(ours[best].items()))
    title = f"{one.title}: {clean(metric, 20)} over labelled images per class, %"
    return Figure(
        title,
        line_chart(
            lines,
            x_label="labelled images per class",
            y_format=lambda value: f"{value:.1f}",
            y_mark=short,
            y_from=0,
            y_to=100,
            places=[str(shot) for shot in shots],
        ),
        f"{title}. {_named(whose.capitalize(), best)}: {said}.",
        table,
        [Key(style, name, "dash" if dashed else "line") for name, style, _, dashed in drawn],
        f"{_NOTE} {notes(one, used)}",
    )


def _curves(scores: Mapping[tuple[str, str], float], metric: str) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for (name, of), value in scores.items():
        match = _NAME.fullmatch(name)
        if match and of == metric:
            curves.setdefault(clean(match[2] or "", 20), {})[int(match[1])] = value
    return curves


def _mean(curve: Curve) -> float:
    return sum(curve.values()) / len(curve)


def _named(what: str, layer: str) -> str:
    return f"{what} ({layer})" if layer else what


def _cell(curve: Curve, shot: int) -> str:
    return f"{curve[shot]:.2f}" if shot in curve else ""
