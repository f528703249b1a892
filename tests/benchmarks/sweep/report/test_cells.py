"""Every cell is there: measured, failed, damaged, or expected and never recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastrot.benchmarks.sweep.record import CellRecord
from fastrot.benchmarks.sweep.report.cells import build_sweep, is_sweep, read_sweep
from fastrot.errors import UsageError

Make = Callable[..., CellRecord]


def expect(folder: Path, cells: dict[str, dict[str, Any]]) -> None:
    tree = {"name": "tried", "cells": [{"key": k, "axes": a} for k, a in cells.items()]}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(tree))


def test_every_status(cell: Make, tmp_path: Path) -> None:
    cell({"ranks": 1}, key="a").save(tmp_path)
    cell({"ranks": 2}, key="b", failed="out of memory").save(tmp_path)
    (tmp_path / "cells/c.json").write_text("{")
    expect(tmp_path, {key: {"ranks": n} for n, key in enumerate("abcd", 1)})
    sweep = read_sweep(tmp_path)
    assert [(c.key, c.status, c.reason[:13]) for c in sweep.cells] == [
        ("a", "done", ""),
        ("b", "failed", "out of memory"),
        ("c", "damaged", "not the recor"),
        ("d", "not measured", "not measured"),
    ]
    assert not sweep.notes and sweep.name == "tried"
    assert [c.axes["ranks"] for c in sweep.cells] == [1, 2, 3, 4]


def test_numbers_are_in_the_order_of_numbers(cell: Make) -> None:
    records = [cell({"data.workers": n}) for n in (10, 2, 0)]
    assert [c.axes["data.workers"] for c in build_sweep("x", records).cells] == [0, 2, 10]


def test_records_of_older_code_do_not_stand_for_what_is_asked(cell: Make) -> None:
    old = cell({"ranks": 1}, key="old")
    done, missing = build_sweep("x", [old], {"new": {"ranks": 1}}).cells
    assert (done.key, done.is_expected) == ("old", False)
    assert (missing.key, missing.status) == ("new", "not measured")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "there is no sweep.yaml"),
        ("name: x\n", "has no list of cells"),
        ("cells: 7\n", "has no list of cells"),
        ("cells: [7]\n", "has no list of cells"),
        ("cells: [{key: [1], axes: {}}]\n", "has no list of cells"),
        ("cells: [\n", "has no list of cells"),
        ("!!python/object/apply:os.system ['true']\n", "has no list of cells"),
    ],
)
def test_without_a_list_of_cells_those_recorded_are_shown(
    cell: Make, tmp_path: Path, text: str | None, why: str
) -> None:
    cell().save(tmp_path)
    if text is not None:
        (tmp_path / "sweep.yaml").write_text(text)
    sweep = read_sweep(tmp_path)
    assert [c.status for c in sweep.cells] == ["done"]
    assert why in sweep.notes[0]


@pytest.mark.parametrize(
    "change",
    [
        {"axes": []},
        {"key": [1]},
        {"host": 7},
        {"config": None},
        {"record": "x"},
        {"status": "perhaps"},
        {"kind": "x"},
        {"measured": None},
        {"measured": {"ranks": 1}},
        {"measured": {"ranks": "many"}},
        {"format": 2},
    ],
    ids=str,
)
def test_a_damaged_record_is_a_cell(cell: Make, tmp_path: Path, change: dict[str, Any]) -> None:
    path = cell(key="a").save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (only,) = read_sweep(tmp_path).cells
    assert (only.key, only.status, only.figures) == ("a", "damaged", None)
    assert only.reason and "\n" not in only.reason


def test_environments_are_told_apart_and_failures_make_none(cell: Make) -> None:
    records = [
        cell({"ranks": 1}),
        cell({"ranks": 2}),
        cell({"ranks": 4}, host="EPYC"),
        cell({"ranks": 8}, failed="x", host="the cluster"),
    ]
    sweep = build_sweep("x", records)
    assert [(e.name, len(e.cells)) for e in sweep.environments] == [("A", 2), ("B", 1)]
    assert [c.environment for c in sweep.cells] == ["A", "A", "B", ""]
    assert sweep.label(sweep.cells[2]) == "ranks 4 [B]"


def test_a_run_is_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert not is_sweep(tmp_path)
    with pytest.raises(UsageError, match="not the folder of a sweep"):
        read_sweep(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        read_sweep(tmp_path / "none")
