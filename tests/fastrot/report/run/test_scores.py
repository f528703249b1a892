"""Bars and curves of results, beside the random initialisation and the published numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fastrot.evaluation.result import Score
from fastrot.report.run.measured import listed, measurements_section
from fastrot.report.run.results import read_results
from fastrot.report.run.scores import lowshot_section, scores_section

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
Write = Callable[..., Path]


def scores(metric: str, *values: float, suffix: str = "") -> list[Score]:
    return [
        Score(f"{name}{suffix}", metric, value, name)
        for name, value in zip(STAGES, values, strict=True)
    ]


def test_bars_stand_beside_random_and_published(run: Path, write_result: Write) -> None:
    ours = scores("top1", 10, 30, 40, 50, 20)
    write_result(run, "in1k-linear-mhead", "in1k-linear-mhead", ours)
    write_result(
        run, "in1k-linear-mhead-random", "in1k-linear-mhead", scores("top1", 11, 16, 13, 9, 6.5)
    )
    found, problems = read_results(run)
    assert [one.name for one in found] == ["in1k-linear-mhead"] and problems == []
    (figure,) = scores_section(found, problems).blocks
    rows = {row[0]: list(row[1:]) for row in figure.table.rows}  # type: ignore[union-attr]
    assert rows["layer3"] == ["50.00", "9.00", "+41.00", "54.20"]
    assert rows["stem"] == ["10.00", "11.00", "-1.00", "12.15"]
    drawing = figure.drawing  # type: ignore[union-attr]
    assert len(re.findall(r'<rect [^>]*class="bar', drawing)) == 15
    assert "layer3, published: 54.20 %" in drawing


def test_random_scores_of_the_same_file_are_taken(run: Path, write_result: Write) -> None:
    both = scores("top1", 1, 2, 3, 4, 5) + scores("top1", 2, 3, 4, 5, 6, suffix=" optimum")
    write_result(run, "linear", "linear", both, random=scores("top1", 5, 4, 3, 2, 1))
    found, problems = read_results(run)
    plain, optimum = scores_section(found, problems).blocks
    assert list(plain.table.heads) == ["", "this run", "random initialisation", "gain"]  # type: ignore[union-attr]
    assert list(optimum.table.heads) == ["", "this run"]  # type: ignore[union-attr]
    assert [row[0] for row in optimum.table.rows] == list(STAGES)  # type: ignore[union-attr]


def test_the_lowshot_curve_stands_beside_the_published_one(run: Path, write_result: Write) -> None:
    shots = (1, 2, 4, 8, 16, 32, 64, 96)
    ours = [Score(f"{k}-shot {layer}", "mAP", base + k / 10, layer)
            for layer, base in (("layer2", 10), ("layer3", 20)) for k in shots]  # fmt: skip
    write_result(run, "voc07-lowshot", "voc07-lowshot", ours)
    found, problems = read_results(run)
    assert scores_section(found, problems).blocks == []
    (figure,) = lowshot_section(found).blocks
    names = [key.name for key in figure.legend]  # type: ignore[union-attr]
    assert names[0] == "this run (layer3)" and "published (layer3)" in names
    rows = {row[0]: row for row in figure.table.rows}  # type: ignore[union-attr]
    assert rows["4"][1:4] == ["10.40", "20.40", "31.41"]
    assert rows["96"][3] == "62.42"
    assert "published (layer3): 62.4 at 96" in figure.drawing  # type: ignore[union-attr]
    assert "older checkpoint (BGR images)" in figure.note  # type: ignore[union-attr]


def test_a_random_network_alone_is_not_called_the_run(run: Path, write_result: Write) -> None:
    write_result(run, "linear-random", "linear", scores("top1", 5, 4, 3, 2, 1))
    shots = [Score("1-shot layer3", "mAP", 20.0, "layer3")]
    write_result(run, "voc07-lowshot-random", "voc07-lowshot", shots)
    found, problems = read_results(run)
    (bars,), (curve,) = scores_section(found, problems).blocks, lowshot_section(found).blocks
    assert [key.name for key in bars.legend] == ["random initialisation"]  # type: ignore[union-attr]
    assert curve.legend[0].name == "random initialisation (layer3)"  # type: ignore[union-attr]


def test_every_measurement_is_a_row(run: Path, write_result: Write) -> None:
    """Also of other data under the same protocol: named by what sets them apart."""
    for name, test, value in (("knn-a", "a.beton", 50.0), ("knn-b", "b.beton", 60.0)):
        path = write_result(
            run,
            name,
            "knn",
            [Score("k=20", "top1", value - 1, "pool"), Score("k=10", "top1", value, "pool")],
            random=[Score("k=10", "top1", 10.0, "pool")] if name == "knn-b" else None,
        )
        tree = json.loads(path.read_text())
        tree["data"]["test"], tree["time"] = test, "2026-11-30T07:35:41+00:00"
        path.write_text(json.dumps(tree))
    found, _ = read_results(run)
    (table,) = measurements_section(found).blocks
    about = "2026-11-30 07:35 UTC; trained on train.beton, tested on {}.beton; weights: " + str(run)
    assert list(map(list, table.rows)) == [  # type: ignore[union-attr]
        ["knn (test transform) on a", "50.00", "", "top1, k=10", about.format("a")],
        ["knn (test transform) on b", "60.00", "10.00", "top1, k=10", about.format("b")],
    ]
    figures = scores_section(found, []).blocks
    assert [figure.title for figure in figures] == [
        "knn (test transform) on a: top-1 accuracy, %",
        "knn (test transform) on b: top-1 accuracy, %",
    ]
    entries = listed(found)
    assert [entry["title"] for entry in entries] == [one.title for one in found]
    assert entries[1]["random"] == [["k=10", "top1", 10.0]]


@pytest.mark.parametrize(
    ("key", "value"),
    [("scores", None), ("scores", [{"name": 1}]), ("label", 7), ("record", []), ("random", [1])],
)
def test_a_damaged_result_is_named(run: Path, write_result: Write, key: str, value: object) -> None:
    path = write_result(run, "knn", "knn", [Score("k=20", "top1", 50.0, "pool")])
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    found, (problem,) = read_results(run)
    assert found == [] and problem.startswith("knn: not a result")


def test_a_score_that_is_no_number_is_named(run: Path, write_result: Write) -> None:
    write_result(run, "knn", "knn", [Score("k=20", "top1", float("nan"), "pool")])
    found, (problem,) = read_results(run)
    assert found == [] and "no finite value" in problem
