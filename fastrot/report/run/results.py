"""The results of evaluations that a run folder holds: ``eval/*/result.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrot.evaluation.published import PublishedRow
from fastrot.evaluation.result import Result, Score
from fastrot.report.html.text import clean, number, plain
from fastrot.report.run.files import read_object

_RANDOM = "-random"
_MOST_OF_A_CHANGE = 100
_PUBLISHED = (
    "Published: ResNet-50 pretrained on ImageNet for 70 epochs and measured on the protocol's own "
    "data (MMSelfSup 0.x); another network or other data is not the same measurement."
)


@dataclass(frozen=True)
class Found:
    """One evaluated protocol.

    Attributes:
        name: of its folder.
        result: what was measured.
        random: scores of the random initialisation by (name, metric); empty: not measured.
    """

    name: str
    result: Result
    random: Mapping[tuple[str, str], float]

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.result.protocol} ({self.result.label})"

    @property
    def whose(self) -> tuple[str, str]:
        """Whose scores these are, and their class of colour: a random network may stand alone."""
        source = self.result.weights.get("source")
        if self.name.endswith(_RANDOM) or str(source).startswith("random initialisation"):
            return "random initialisation", "s2"
        return "this run", "s1"


def read_results(run: Path) -> tuple[list[Found], list[str]]:
    """All results that can be read, by name, and what is wrong with the others."""
    results: dict[str, Result] = {}
    problems: list[str] = []
    for path in sorted((run / "eval").glob("*/result.json")):
        tree = read_object(path)
        name = path.parent.name
        if isinstance(tree, str):
            problems.append(f"{name}: {tree}")
            continue
        try:
            results[name] = _checked(Result.from_json(tree))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"{name}: not a result ({type(error).__name__}: {error})")
    found = []
    for name, result in results.items():
        partner = f"{name.removesuffix(_RANDOM)}"
        if name.endswith(_RANDOM) and partner in results:
            continue
        other = results.get(f"{name}{_RANDOM}")
        scores = result.random or (other.scores if other is not None else ())
        found.append(
            Found(name, result, {(score.name, score.metric): score.value for score in scores})
        )
    return found, problems


def notes(one: Found, rows: Sequence[PublishedRow]) -> str:
    """What to know before comparing."""
    data = one.result.data
    text = [
        f"Weights: {plain(one.result.weights.get('source'))}; trained on "
        f"{plain(data.get('train'))}, tested on {plain(data.get('test'))}."
    ]
    if one.result.changed:
        changes = "; ".join(clean(change, _MOST_OF_A_CHANGE) for change in one.result.changed)
        text.append(f"Not the protocol's own settings: {changes}.")
    text += [f"{clean(note, 300)}." for note in one.result.notes]
    if rows:
        text.append(_PUBLISHED)
        remarks = sorted({row.note for row in rows if row.note})
        text.append(f"Of the published row: {'; '.join(remarks)}." if remarks else "")
    return " ".join(filter(None, text))


def _checked(result: Result) -> Result:
    for score in [*result.scores, *(result.random or ())]:
        _check_score(score)
    texts = (result.protocol, result.label, *result.changed, *result.notes)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("its names are not text")
    for part in (result.weights, result.data, result.record, result.settings):
        if not isinstance(part, Mapping):
            raise ValueError("a part is not an object")
    return result


def _check_score(score: Score) -> None:
    texts: tuple[Any, ...] = (score.name, score.metric, score.layer or "")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a score's name is not text")
    if number({"value": score.value}, "value") is None:
        raise ValueError(f"score {score.name!r} has no finite value")


def groups(result: Result) -> Iterator[tuple[str, str, list[Score]]]:
    """Scores that belong into one chart: metric, kind ("" or "optimum"), and the scores."""
    parts: dict[tuple[str, str], list[Score]] = {}
    for score in result.scores:
        kind = "optimum" if score.name.endswith(" optimum") else ""
        parts.setdefault((score.metric, kind), []).append(score)
    for (metric, kind), scores in parts.items():
        yield metric, kind, scores
