"""Efficiencies: by hand, and only between cells that may be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from fastrot.benchmarks.common.harness import Spread
from fastrot.benchmarks.sweep.record import CellRecord
from fastrot.benchmarks.sweep.report.cells import build_sweep
from fastrot.benchmarks.sweep.report.scaling import Efficiency, efficiencies

Make = Callable[..., CellRecord]


def found(records: Sequence[CellRecord]) -> list[Efficiency]:
    return efficiencies(build_sweep("tried", records))


def test_weak_scaling_by_hand(cell: Make) -> None:
    one = cell({"ranks": 1, "batch_per_rank": 50}, (100.0, 90.0, 110.0))
    four = cell({"ranks": 4, "batch_per_rank": 50}, (330.0, 320.0, 340.0))
    (only,) = found([one, four])
    assert (only.mode, only.against, only.ranks, only.base_ranks) == ("weak", "1 rank", 4, 1)
    assert only.speedup == Spread(3.3, 320 / 110, 340 / 90, 3)
    assert only.efficiency.median == pytest.approx(0.825)
    assert only.efficiency.low == pytest.approx(320 / 110 / 4)
    assert (only.cell, only.base, only.settings_that_followed) == (four.key, one.key, None)


def test_strong_scaling_by_hand(cell: Make) -> None:
    one = cell({"ranks": 1, "batch_per_rank": 64})
    two = cell({"ranks": 2, "batch_per_rank": 32}, (180.0,))
    (only,) = found([one, two])
    assert (only.mode, only.efficiency.median) == ("strong", pytest.approx(0.9))


def test_nodes_are_compared_with_one_that_is_as_full(cell: Make) -> None:
    records = [
        cell({"ranks": 1, "nodes": 1}, (100.0,)),
        cell({"ranks": 4, "nodes": 1}, (360.0,)),
        cell({"ranks": 8, "nodes": 1}, (600.0,)),
        cell({"ranks": 8, "nodes": 2}, (648.0,)),
    ]
    pairs = {(e.ranks, e.nodes, e.against): e.efficiency.median for e in found(records)}
    assert pairs == {
        (4, 1, "1 rank"): pytest.approx(0.9),
        (8, 1, "1 rank"): pytest.approx(0.75),
        (8, 2, "1 rank"): pytest.approx(0.81),
        (8, 2, "1 node"): pytest.approx(0.9),
    }


def test_one_rank_that_is_one_node_is_told_once(cell: Make) -> None:
    (only,) = found([cell({"ranks": 1, "nodes": 1}), cell({"ranks": 2, "nodes": 2}, (150.0,))])
    assert only.against == "1 rank"


@pytest.mark.parametrize(
    "other",
    [
        {"settings": {"train.epochs": 8.0}},
        {"settings": {"data.loader": "ffcv"}},
        {"code": "01d"},
        {"host": "another machine"},
        {"machine": {"packages": {"torch": "2.14.0"}}},
        {"machine": {"gpus": ["NVIDIA A100"]}},
        {"kind": "loader"},
    ],
    ids=str,
)
def test_cells_that_differ_in_more_are_not_compared(cell: Make, other: dict[str, object]) -> None:
    one = cell({"ranks": 1})
    assert len(found([one, cell({"ranks": 2})])) == 1
    assert found([one, cell({"ranks": 2}, **other)]) == []


def test_another_value_of_an_axis_is_not_compared(cell: Make) -> None:
    one, two = (cell({"ranks": r, "data.workers": r}) for r in (1, 2))
    assert found([one, two]) == []


def test_what_follows_from_the_ranks_is_told(cell: Make) -> None:
    two = cell({"ranks": 2}, settings={"train.threads": 2, "data.workers": 1})
    (only,) = found([cell({"ranks": 1}), two])
    assert only.settings_that_followed == "data.workers 2 -> 1, train.threads 4 -> 2"


def test_more_cores_for_more_ranks_is_the_same_environment(cell: Make) -> None:
    two = cell({"ranks": 2}, machine={"cores": 16, "gpus": ["NVIDIA H100"], "date": "2026-12-01"})
    assert len(found([cell({"ranks": 1}), two])) == 1


def test_without_one_rank_the_fewest_are_the_base(cell: Make) -> None:
    places = ((2, 1, 200.0), (4, 1, 380.0), (4, 2, 360.0))
    records = [cell({"ranks": r, "nodes": n}, (rate,)) for r, n, rate in places]
    pairs = {(e.ranks, e.nodes, e.against): e.efficiency.median for e in found(records)}
    assert pairs == {
        (4, 1, "2 ranks"): pytest.approx(0.95),
        (4, 2, "2 ranks"): pytest.approx(0.9),
        (4, 2, "1 node"): pytest.approx(0.9),
    }


def test_failed_cells_scale_nothing(cell: Make) -> None:
    assert found([cell({"ranks": 1}), cell({"ranks": 2}, failed="peer lost")]) == []
