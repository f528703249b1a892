"""The evaluation results in a run folder, each with a distinct title."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrot.evaluation.measurements import (
    Measurement,
    is_at_random,
    is_random_of,
    read_measurements,
)
from fastrot.evaluation.protocol import DENSE
from fastrot.evaluation.published import PublishedRow
from fastrot.evaluation.result import Result, Score
from fastrot.report.html.text import clean, plain
from fastrot.report.run.names import name_measurements

_MOST_OF_A_CHANGE = 100
_PUBLISHED = (
    "Published: ResNet-50 pretrained on ImageNet for 70 epochs and measured on the protocol's own "
    "data (MMSelfSup 0.x); scores of another network or of other data are not comparable."
)


@dataclass(frozen=True)
class Found:
    """One measurement.

    Attributes:
        measurement: the measurement as stored.
        random: scores of the random initialisation by (name, metric); empty: not measured.
        random_time: when those were measured; empty: not measured, or unknown.
        title: distinct name on the page.
    """

    measurement: Measurement
    random: Mapping[tuple[str, str], float]
    random_time: str
    title: str

    @property
    def name(self) -> str:
        """Return the name of the measurement's folder."""
        return self.measurement.name

    @property
    def result(self) -> Result:
        """Return the stored result."""
        return self.measurement.result

    @property
    def whose(self) -> tuple[str, str]:
        """Return what the scores belong to and their colour class: a run or a random network."""
        if is_at_random(self.measurement):
            return "random initialisation", "s2"
        return "this run", "s1"


def read_results(run: Path) -> tuple[list[Found], list[str]]:
    """Return all results that can be read, by name, and what is wrong with the others."""
    measured, problems = read_measurements(run / "eval")
    found: list[tuple[Measurement, Measurement | None]] = []
    for one in measured:
        if any(is_random_of(one, other) for other in measured):
            continue  # it is shown beside the other one
        beside = (other for other in measured if is_random_of(other, one))
        found.append((one, next(beside, None)))
    titles = name_measurements([one for one, _ in found])
    results = []
    for (one, other), title in zip(found, titles, strict=True):
        scores, time = one.result.random, one.result.random_time or ""
        if not scores and other is not None:
            scores, time = other.result.scores, other.time
        random = {(score.name, score.metric): score.value for score in scores or ()}
        results.append(Found(one, random, time, title))
    return results, problems


def notes(one: Found, rows: Sequence[PublishedRow]) -> str:
    """Return what readers should know before they compare the scores."""
    data = one.result.data
    text = [
        f"Weights: {plain(one.result.weights.get('source'))}; trained on "
        f"{plain(data.get('train'))}, tested on {plain(data.get('test'))}."
    ]
    text.append(f"Measured {moment(one.measurement.time)}.")
    if one.random_time:
        text.append(f"Random initialisation measured {moment(one.random_time)}.")
    if one.result.changed:
        changes = "; ".join(clean(change, _MOST_OF_A_CHANGE) for change in one.result.changed)
        text.append(f"Differs from the protocol: {changes}.")
    text += [f"{clean(note, 300)}." for note in one.result.notes]
    if rows:
        text.append(_PUBLISHED)
        remarks = sorted({row.note for row in rows if row.note})
        text.append(f"About the published row: {'; '.join(remarks)}." if remarks else "")
    return " ".join(filter(None, text))


def moment(time: str) -> str:
    """Return the time of a result in a readable form.

    Example:
        >>> moment("2026-11-30T07:35:41+00:00")
        '2026-11-30 07:35 UTC'
    """
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):[\d.]+\+00:00", time)
    return f"{match[1]} {match[2]} UTC" if match else clean(time, 40)


def is_dense(result: Result) -> bool:
    """Return whether a whole model was trained for the result."""
    return result.settings.get("kind") in DENSE


def groups(result: Result) -> Iterator[tuple[str, str, list[Score]]]:
    """Yield the scores of each chart: metric, kind ("" or "optimum"), and the scores."""
    parts: dict[tuple[str, str], list[Score]] = {}
    for score in result.scores:
        kind = "optimum" if score.name.endswith(" optimum") else ""
        parts.setdefault((score.metric, kind), []).append(score)
    for (metric, kind), scores in parts.items():
        yield metric, kind, scores
