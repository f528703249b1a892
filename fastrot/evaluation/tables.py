"""Tables of one result and of a suite: measured and published numbers side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from fastrot.evaluation.measurements import RESULT
from fastrot.evaluation.published import PublishedRow, lookup, published
from fastrot.evaluation.result import Result, Score
from fastrot.system.console import print_lines

BEST = "best layer"


@dataclass(frozen=True)
class EvalReport:
    """A result and its folder.

    Attributes:
        result: the result.
        folder: folder of its ``result.json``.
    """

    result: Result
    folder: Path
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``result.json``, and its path as ``file``."""
        return {**self.result.to_json(), "file": str(self.folder / RESULT)}

    def show(self, console: Console) -> None:
        """Print a table and what to know before comparing."""
        result = self.result
        show_rows(console, suite_rows([result]))
        lines = [f"weights: {result.weights['source']}"]
        lines += [f"not the protocol's own setting: {change}" for change in result.changed]
        lines += [f"data: {result.data['train']}, tested on {result.data['test']}"]
        if result.random is not None and result.random_time is not None:
            lines += [f"random init: measured {result.random_time}"]
        print_lines(console, [*lines, *result.notes, f"{self.folder / RESULT}"])


class SuiteRow(NamedTuple):
    """One number.

    Attributes:
        protocol: name of the protocol.
        mode: how training rows were made.
        name: name of the score.
        metric: metric of the score.
        measured: measured value in percent.
        random: the same for the random initialisation; None: not measured.
        published: published value of rotation prediction; None: there is none.
        source: publication and checkpoint of the published value.
        train: training data.
        test: test data.
        solver: solver of the SVMs or of the exact optimum; empty: there is none.
    """

    protocol: str
    mode: str
    name: str
    metric: str
    measured: float
    random: float | None
    published: float | None
    source: str
    train: str
    test: str
    solver: str


def suite_rows(results: Sequence[Result]) -> list[SuiteRow]:
    """Return all numbers; ``voc07-svm`` ends with the best layer, the one that is published."""
    rows = []
    for result in results:
        random = {(score.name, score.metric): score.value for score in result.random or ()}
        for score in result.scores:
            row = lookup(result.protocol, score.name, score.metric)
            rows.append(_row(result, score, random.get((score.name, score.metric)), row))
        if any(row.name == BEST for row in published(result.protocol)) and result.scores:
            best = max(result.scores, key=lambda score: score.value)
            named = replace(best, name=BEST)
            other = max(random.values(), default=None)
            rows.append(_row(result, named, other, lookup(result.protocol, BEST, best.metric)))
    return rows


def _row(result: Result, score: Score, random: float | None, row: PublishedRow | None) -> SuiteRow:
    return SuiteRow(
        result.protocol,
        result.label,
        score.name,
        score.metric,
        round(score.value, 4),
        None if random is None else round(random, 4),
        None if row is None else row.value,
        "" if row is None else f"{row.source}, {row.checkpoint}",
        str(result.data.get("train", "")),
        str(result.data.get("test", "")),
        str(score.detail.get("solver", "")),
    )


def shown_rows(rows: Sequence[SuiteRow]) -> list[SuiteRow]:
    """Drop the dozens of low-shot numbers for layers without a published number."""
    return [
        row for row in rows if row.protocol != "voc07-lowshot" or row.published is not None
    ] or list(rows)


def number_heads(rows: Sequence[SuiteRow]) -> list[str]:
    """Return the heads of the number columns; the random initialisation only if it was measured."""
    random = ["random init"] if any(row.random is not None for row in rows) else []
    return ["measured", *random, "published"]


def number_cells(row: SuiteRow, rows: Sequence[SuiteRow]) -> list[str]:
    """Return the numbers of one row, under ``number_heads(rows)``."""
    values = {"measured": row.measured, "random init": row.random, "published": row.published}
    numbers = [values[head] for head in number_heads(rows)]
    return ["" if value is None else f"{value:.2f}" for value in numbers]


def show_rows(console: Console, rows: Sequence[SuiteRow]) -> None:
    """Print one table for each protocol and mode."""
    for (protocol, mode), group in groupby(rows, key=lambda row: (row.protocol, row.mode)):
        table = Table(title=f"{protocol} ({mode})", title_justify="left", min_width=60)
        for column in ("", "metric", *number_heads(rows)):
            table.add_column(column, justify="left" if column in ("", "metric") else "right")
        for row in group:
            table.add_row(row.name, row.metric, *number_cells(row, rows))
        console.print(table)


def suite_csv(results: Sequence[Result]) -> str:
    """Return every row as CSV, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SuiteRow._fields)
    writer.writerows(suite_rows(results))
    return text.getvalue()


def suite_markdown(
    results: Sequence[Result],
    left_out: Mapping[str, str],
    gaps: Mapping[str, Mapping[str, float]],
) -> str:
    """Return a page: the table, gaps between modes, protocols left out, and notes."""
    rows = shown_rows(suite_rows(results))
    heads = ["protocol", "mode", "", "metric", *number_heads(rows)]
    rules = ["---"] * 4 + ["---:"] * (len(heads) - 4)
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(rules)}|"]
    for row in rows:
        texts = [row.protocol, row.mode, row.name, row.metric]
        cells = [*map(_cell, texts), *number_cells(row, rows)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [""] + [
        f"- {protocol}, augmented minus cached: "
        + ", ".join(f"{name} {value:+.2f}" for name, value in gap.items())
        for protocol, gap in gaps.items()
    ]
    lines += [f"- not run: {_cell(name)}: {_cell(why)}" for name, why in left_out.items()]
    lines += [f"- {_cell(line)}" for line in suite_notes(results)]
    sources = {row.source for row in rows if row.source}
    lines += [f"- published: {_cell(source)}" for source in sorted(sources)]
    return "\n".join(lines) + "\n"


def suite_notes(results: Sequence[Result]) -> list[str]:
    """Return the weights and all differences from published settings and data, each line once."""
    protocols: dict[str, dict[str, None]] = {}
    for result in results:
        for text in (*result.changed, *result.notes):
            protocols.setdefault(text, {})[result.protocol] = None
    weights = {str(result.weights["source"]) for result in results}
    lines = [f"weights: {text}" for text in sorted(weights)]
    return lines + [f"{text} ({', '.join(names)})" for text, names in protocols.items()]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
