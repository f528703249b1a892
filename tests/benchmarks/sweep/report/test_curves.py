"""Scaling curves: the ideal, and the numbers beside it."""

from __future__ import annotations

from collections.abc import Callable

from fastrot.benchmarks.sweep.record import CellRecord
from fastrot.benchmarks.sweep.report.cells import build_sweep
from fastrot.benchmarks.sweep.report.curves import scaling_section
from fastrot.benchmarks.sweep.report.scaling import efficiencies, scaling_series
from fastrot.report.html.blocks import Figure, Section, Table

Make = Callable[..., CellRecord]


def section(*records: CellRecord) -> Section:
    sweep = build_sweep("tried", records)
    series = scaling_series(sweep)
    return scaling_section(sweep, series, efficiencies(series))


def test_the_ideal_grows_with_the_ranks(cell: Make) -> None:
    records = [cell({"ranks": n}, (rate, rate)) for n, rate in ((1, 100), (2, 180), (8, 600))]
    curve, table = section(*records).blocks
    assert isinstance(curve, Figure) and isinstance(table, Table)
    assert curve.title == "Weak scaling, views/s (50 a rank)"
    assert [row[0::2] for row in curve.table.rows] == [
        ["1", "400", "100.0\u00a0%"],
        ["2", "720", "90.0\u00a0%"],
        ["8", "2,400", "75.0\u00a0%"],
    ]
    assert [row[3] for row in curve.table.rows] == ["400", "800", "3,200"]
    assert curve.note == "At 8 ranks 75.0\u00a0% of the ideal."
    assert all(f">{mark}<" in curve.drawing for mark in (1, 2, 8)) and ">4<" not in curve.drawing
    assert [row[2:5] for row in table.rows] == [
        ["1 rank (1 of 2)", "1.80", "90.0\u00a0%"],
        ["1 rank (1 of 8)", "6.00", "75.0\u00a0%"],
    ]


def test_numbers_at_the_axis_have_room(cell: Make) -> None:
    records = [cell({"ranks": n}, (n, n)) for n in (1, 2, 4, 512, 1024)]
    curve = section(*records).blocks[0]
    assert isinstance(curve, Figure)
    shown = {mark for mark in ("1", "2", "4", "512", "1,024") if f">{mark}</text>" in curve.drawing}
    assert shown == {"4", "512", "1,024"}


def test_why_there_is_none(cell: Make) -> None:
    two = cell({"ranks": 2}, settings={"train.step": "eager"})
    (line,) = section(cell({"ranks": 1}), two).missing
    assert "differ in train.step none -> eager" in line
    (line,) = section(cell({"ranks": 2}), cell({"ranks": 4})).missing
    assert "no cell has one rank" in line
