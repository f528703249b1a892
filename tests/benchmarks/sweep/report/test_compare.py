"""A sweep beside its baseline: what counts as slower, and what can not be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastrot.benchmarks.sweep.record import CellRecord
from fastrot.benchmarks.sweep.report.cells import Sweep, build_sweep
from fastrot.benchmarks.sweep.report.compare import Comparison, compare, read_baseline
from fastrot.benchmarks.sweep.report.make import make_sweep_report
from fastrot.errors import SLOWER, BadDataError, UsageError

Make = Callable[..., CellRecord]
OLD = (100.0, 99.0, 101.0)


def sweep(*records: CellRecord) -> Sweep:
    return build_sweep("tried", records)


def against(now: CellRecord, then: CellRecord, threshold: float = 5.0) -> Comparison:
    return compare(sweep(now), sweep(then), threshold, "old.json")


@pytest.mark.parametrize(
    ("rates", "outcome"),
    [
        ((94.0, 93.0, 95.0), "slower"),
        ((95.0, 94.0, 96.0), "within the threshold"),  # exactly 5 % is not more than 5 %
        ((97.0, 96.0, 98.0), "within the threshold"),
        ((90.0, 80.0, 99.0), "no difference beyond the spread"),  # it touches
        ((90.0, 80.0, 98.9), "slower"),
        ((100.0, 99.0, 101.0), "no difference beyond the spread"),
        ((104.0, 103.0, 105.0), "within the threshold"),
        ((110.0, 109.0, 111.0), "faster"),
    ],
)
def test_outcomes(cell: Make, rates: tuple[float, ...], outcome: str) -> None:
    found = against(cell(rates=rates), cell(rates=OLD))
    (only,) = found.cells
    assert only.outcome == outcome
    assert found.exit_code == (79 if outcome == "slower" else 0)
    assert only.ratio is not None and only.ratio.median == pytest.approx(rates[0] / 100)
    assert only.ratio.low == pytest.approx(min(rates) / 101)
    assert found.lines == []


def test_the_threshold_decides(cell: Make) -> None:
    now, then = cell(rates=(94.0, 93.5, 94.5)), cell(rates=OLD)
    assert against(now, then, 5).regressions and not against(now, then, 7).regressions
    with pytest.raises(UsageError, match="--threshold=100 must be"):
        against(now, then, 100)
    with pytest.raises(UsageError, match="--threshold=nan"):
        against(now, then, float("nan"))


def test_failed_now_and_missing_now_are_regressions(cell: Make) -> None:
    then = sweep(cell({"ranks": 1}), cell({"ranks": 2}), cell({"ranks": 4}, failed="no GPU"))
    now = build_sweep(
        "tried",
        [cell({"ranks": 1}, failed="out of memory"), cell({"ranks": 4})],
        {"k2": {"ranks": 2}},
    )
    found = compare(now, then, 5, "old")
    outcomes = {each.axes["ranks"]: each.outcome for each in found.cells}
    assert outcomes == {1: "failed now", 2: "missing now", 4: "new"}
    assert found.exit_code == SLOWER
    assert found.summary.startswith("1 failed now, 1 missing now")
    assert [each.note for each in found.cells if each.axes["ranks"] == 1] == ["out of memory"]
    assert "nothing could be compared" in found.lines[0]


def test_a_place_that_is_not_in_the_sweep_is_missing(cell: Make) -> None:
    found = compare(sweep(cell({"ranks": 1})), sweep(cell({"ranks": 2})), 5, "old")
    assert {each.axes["ranks"]: each.outcome for each in found.cells} == {
        1: "new",
        2: "missing now",
    }


def test_other_settings_are_not_compared(cell: Make) -> None:
    found = against(cell(settings={"train.epochs": 10.0}), cell())
    (only,) = found.cells
    assert (only.outcome, only.ratio) == ("other settings", None)
    assert only.note == "train.epochs 9 -> 10" and found.exit_code == SLOWER


def test_how_a_step_is_carried_out_is_compared_and_told(cell: Make) -> None:
    found = against(cell(settings={"train.step": "fused"}), cell(settings={"train.step": "eager"}))
    assert found.cells[0].ratio is not None
    assert found.cells[0].note == "now train.step eager -> fused"


def test_an_axis_is_not_just_how_it_is_carried_out(cell: Make) -> None:
    now = cell({"data.workers": 2}, settings={"data.workers": 3})
    assert against(now, cell({"data.workers": 2})).cells[0].outcome == "other settings"


def test_the_folder_of_the_data_does_not_matter(cell: Make) -> None:
    found = against(cell(settings={"data.train": "/elsewhere/in.beton"}), cell())
    assert found.cells[0].ratio is not None
    found = against(cell(settings={"data.train": "/data/other.beton"}), cell())
    assert found.cells[0].outcome == "other settings"


def test_another_host_is_told(cell: Make) -> None:
    then = cell(host="EPYC, 64 cores", machine={"packages": {"torch": "2.14.0"}}, code="01d")
    first, *others = against(cell(rates=(50.0,)), then).lines
    assert "from another host" in first
    assert "host EPYC, 64 cores -> Xeon, 8 cores, 2 x H100 (baseline -> now) in 1 of 1" in others[0]
    assert any(line.startswith("torch 2.14.0 -> ") for line in others)
    assert any(line.startswith("code 01d -> c0de") for line in others)


def test_of_several_records_of_a_place_that_of_the_same_host_is_compared(cell: Make) -> None:
    near = cell(rates=(100.0,), machine={"date": "2026-01-01"})
    far = cell(rates=(500.0,), host="EPYC, 64 cores")
    found = compare(sweep(cell(rates=(100.0,))), sweep(near, far), 5, "old")
    (only,) = found.cells
    assert found.lines[-1].startswith("not compared: 1 of the baseline")
    assert only.ratio is not None and only.ratio.median == 1


def test_contaminated_and_lonely_repeats_are_told(cell: Make) -> None:
    (only,) = against(cell(rates=(90.0,), busy=0.4), cell(rates=OLD)).cells
    assert only.outcome == "slower"
    assert (
        only.note and "1 repeat" in only.note and "contaminated now: others used 40 %" in only.note
    )


def test_a_report_is_a_baseline_as_good_as_its_folder(cell: Make, tmp_path: Path) -> None:
    for record in (cell({"ranks": 1}, OLD), cell({"ranks": 2}, failed="x")):
        record.save(tmp_path / "old")
    make_sweep_report(tmp_path / "old")
    one, other = read_baseline(tmp_path / "old"), read_baseline(tmp_path / "old/report.json")
    assert [c.to_json() for c in one.cells] == [c.to_json() for c in other.cells]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"format": 1}', '{"format": 2, "cells": []}',
     '{"format": 1, "sweep": "x", "cells": [{"record": {"format": 1}}]}',
     '{"format": 1, "sweep": "x", "cells": [7]}', "[" * 100_000],
)  # fmt: skip
def test_damaged_baselines_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(BadDataError, match=r"report\.json: not the re"):
        read_baseline(path)


def test_a_baseline_without_measurements_is_refused(cell: Make, tmp_path: Path) -> None:
    cell(failed="x").save(tmp_path)
    with pytest.raises(UsageError, match="none of its cells was measured"):
        read_baseline(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_baseline(tmp_path / "none.json")


def test_a_comparison_is_plain_values(cell: Make) -> None:
    tree = json.loads(json.dumps(against(cell(rates=(50.0,)), cell()).to_json()))
    assert tree["regressions"] == 1 and tree["threshold_percent"] == 5
    assert tree["cells"][0]["ratio"]["median"] == 0.5
