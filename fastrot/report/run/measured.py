"""The table of all measurements of a run, one row each: none hides another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastrot.report.html.blocks import Section, Table
from fastrot.report.html.text import clean, plain
from fastrot.report.run.results import Found, moment


def measurements_section(found: Sequence[Found]) -> Section:
    """Return one row per measurement: its best score, data and weights, and when it was made."""
    section = Section("measurements", "Measurements")
    if not found:
        return section
    section.lead = (
        "All measurements, separated by protocol, data, mode, settings and weights. If one has "
        "several layers or settings, its best score is shown."
    )
    heads = ["", "best", "random init", "metric", "details"]
    rows = [[one.title, *_best(one), _about(one)] for one in found]
    section.blocks.append(Table(heads, rows, "All measurements", open=True, noted=True))
    return section


def listed(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Return the measurements as plain values, each with its title and its random column."""
    return [
        {
            **one.measurement.to_json(),
            "title": one.title,
            "random": [[*name, value] for name, value in one.random.items()] or None,
            "random_time": one.random_time or None,
        }
        for one in found
    ]


def summary(one: Found) -> str:
    """Return one line about a measurement, for a terminal."""
    best, random, what = _best(one)
    beside = f" (random initialisation {random})" if random else ""
    return f"{one.title}: {best} {what}{beside}, {moment(one.measurement.time)}"


def _best(one: Found) -> tuple[str, str, str]:
    """Return the best score of the first metric, as text, and what it belongs to.

    Returns:
        The best score; the matching score of a random initialisation, empty if there is none; and
        the names of the metric and of the score.
    """
    scores = one.result.scores
    if not scores:
        return "none", "", ""
    best = max((s for s in scores if s.metric == scores[0].metric), key=lambda s: s.value)
    random = one.random.get((best.name, best.metric))
    named = f"{clean(best.metric, 20)}, {clean(best.name, 40)}"
    return f"{best.value:.2f}", "" if random is None else f"{random:.2f}", named


def _about(one: Found) -> str:
    data, weights = one.result.data, one.result.weights
    return (
        f"{moment(one.measurement.time)}; trained on {plain(data.get('train'))}, tested on "
        f"{plain(data.get('test'))}; weights: {plain(weights.get('source'))}"
    )
