"""The suite's table: published numbers where they belong, the best layer, hostile text."""

from __future__ import annotations

import csv
import io

from fastrot.evaluation.result import Result, Score
from fastrot.evaluation.tables import shown_rows, suite_csv, suite_markdown, suite_rows


def result(protocol: str, scores: list[Score], random: list[Score] | None = None) -> Result:
    return Result(
        protocol=protocol,
        label="test transform",
        scores=scores,
        random=random,
        settings={},
        changed=["svm.folds: 3 -> 2"],
        weights={"source": "a|b", "digest": "0"},
        data={},
        caches={},
        seconds={},
        record={},
        notes=["data: 20 images"],
    )


SVM = result(
    "voc07-svm",
    [Score("layer2", "mAP", 40.0, "layer2"), Score("layer3", "mAP", 60.0, "layer3")],
    [Score("layer2", "mAP", 30.0, "layer2"), Score("layer3", "mAP", 20.0, "layer3")],
)
LOWSHOT = result(
    "voc07-lowshot",
    [Score("1-shot layer2", "mAP", 9.0, "layer2"), Score("1-shot layer3", "mAP", 11.0, "layer3")],
)


def test_the_best_layer_stands_beside_the_published_best() -> None:
    rows = {row.name: row for row in suite_rows([SVM])}
    assert (rows["layer3"].measured, rows["layer3"].published) == (60.0, 67.70)
    assert rows["layer2"].published is None
    best = rows["best layer"]
    assert (best.measured, best.random, best.published) == (60.0, 30.0, 67.70)
    assert "20211213-513972ac" in best.source


def test_low_shot_rows_of_other_layers_are_only_in_the_csv() -> None:
    rows = suite_rows([LOWSHOT])
    assert [row.name for row in rows] == ["1-shot layer2", "1-shot layer3"]
    assert [row.name for row in shown_rows(rows)] == ["1-shot layer3"]
    assert shown_rows(rows)[0].published == 20.60
    table = list(csv.DictReader(io.StringIO(suite_csv([SVM, LOWSHOT]))))
    assert len(table) == 5 and table[0]["random"] == "30.0" and table[3]["published"] == ""


def test_the_csv_says_who_solved() -> None:
    detail = {"solver": "cyanure"}
    scores = [Score("layer3", "mAP", 60.0, "layer3", detail), Score("layer2", "mAP", 40.0)]
    table = list(csv.DictReader(io.StringIO(suite_csv([result("voc07-svm", scores)]))))
    assert [(row["name"], row["solver"]) for row in table] == [
        ("layer3", "cyanure"),
        ("layer2", ""),
        ("best layer", "cyanure"),
    ]


def test_markdown_says_what_differs_and_escapes() -> None:
    text = suite_markdown([SVM, LOWSHOT], {"knn": "no\nlabels"}, {"linear": {"stem top1": 1.5}})
    assert "| voc07-svm | test transform | best layer | mAP | 60.00 | 30.00 | 67.70 |" in text
    assert "- svm.folds: 3 -> 2 (voc07-svm, voc07-lowshot)" in text
    assert "- weights: a\\|b" in text and "- not run: knn: no labels" in text
    assert "linear, augmented minus cached: stem top1 +1.50" in text
