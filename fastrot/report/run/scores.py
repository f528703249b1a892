"""Scores layer by layer, beside the random initialisation and the published numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastrot.evaluation.published import PublishedRow, lookup
from fastrot.evaluation.result import Score
from fastrot.report.charts.bars import Bar, bar_chart
from fastrot.report.html.blocks import Figure, Key, Section, Table
from fastrot.report.html.text import clean
from fastrot.report.run.lowshot import is_lowshot, lowshot_figures
from fastrot.report.run.results import Found, groups, is_dense, notes

_METRICS = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "mAP": "mean average precision"}


def scores_section(found: Sequence[Found], problems: Sequence[str]) -> Section:
    """Show bars for every protocol whose scores are not a curve over labels."""
    section = Section("scores", "Scores by layer")
    for one in found:
        if not is_lowshot(one.result) and not is_dense(one.result):
            section.blocks += [
                score_figure(one, f"{_METRICS.get(metric, metric)}, %", kind, scores)
                for metric, kind, scores in groups(one.result)
            ]
    if section.blocks:
        section.lead = (
            "Scores of linear models, SVMs or nearest neighbours on the frozen features. The "
            "random initialisation is the same network before training."
        )
    else:
        section.missing.append(
            "scores: no result of frozen features in the run's eval folder; fastrot eval linear "
            "RUN --train DATA --test DATA writes one"
        )
    section.missing += [f"result of {problem}" for problem in problems]
    return section


def lowshot_section(found: Sequence[Found]) -> Section:
    """Show the curve over labels per class, beside the published one."""
    section = Section("lowshot", "Few labels")
    for one in found:
        if is_lowshot(one.result):
            section.blocks += lowshot_figures(one)
    if not section.blocks:
        section.missing.append("low-shot curve: no voc07-lowshot result in the run's eval folder")
    return section


def score_figure(one: Found, what: str, kind: str, scores: Sequence[Score]) -> Figure:
    """Return bars of some scores beside the random initialisation and the published numbers.

    Args:
        one: the measurement.
        what: what the scores are, with the unit.
        kind: ``optimum``, which the names of such scores end with; or empty.
        scores: scores of the measurement.
    """
    rows: list[list[str]] = []
    bars: list[tuple[str, list[Bar]]] = []
    said: list[str] = []
    used: dict[str, PublishedRow] = {}
    whose, style = one.whose
    for score in scores:
        name = clean(score.name.removesuffix(f" {kind}") if kind else score.name, 40)
        random = one.random.get((score.name, score.metric))
        row = lookup(one.result.protocol, score.name, score.metric)
        group = [Bar(whose, style, score.value)]
        text = f"{name} {score.value:.1f} %"
        if random is not None:
            group.append(Bar("random initialisation", "s2", random))
            text += f" (random initialisation {random:.1f} %)"
        if row is not None:
            group.append(Bar("published", "s3", row.value, open=True))
            used[row.checkpoint] = row
        bars.append((name, group))
        said.append(text)
        gain = "" if random is None else f"{score.value - random:+.2f}"
        rows.append(
            [
                name,
                f"{score.value:.2f}",
                "" if random is None else f"{random:.2f}",
                gain,
                "" if row is None else f"{row.value:.2f}",
            ]
        )
    keys = [Key(style, whose, "box")]
    if any(len(row[2]) for row in rows):
        keys.append(Key("s2", "random initialisation", "box"))
    if used:
        keys.append(Key("s3", "published", "open"))
    title = f"{one.title}{', exact optimum' if kind else ''}: {what}"
    heads = ["", whose, "random initialisation", "gain", "published"]
    return Figure(
        title,
        bar_chart(bars),
        f"{title}: {'; '.join(said)}.",
        _table(heads, rows, dense=is_dense(one.result)),
        keys,
        notes(one, list(used.values())),
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, dense: bool) -> Table:
    """Return the columns that are not empty; rows are sorted by layer, or open as they are."""
    kept = [0, *(i for i in range(1, len(heads)) if any(row[i] for row in rows))]
    body = [[row[i] for i in kept] for row in rows]
    body = body if dense else sorted(body, key=_natural)
    return Table([heads[i] for i in kept], body, open=dense)


def _natural(row: Sequence[str]) -> list[int | str]:
    order = ("stem", "layer", "block", "pool")
    place = next((i for i, name in enumerate(order) if row[0].startswith(name)), len(order))
    return [place, *(int(digits) for digits in re.findall(r"\d{1,9}", row[0]))]
