"""Where the time of a step goes, and loaders beside each other."""

from __future__ import annotations

from collections.abc import Callable

from fastrot.benchmarks.sweep.record import CellRecord
from fastrot.benchmarks.sweep.report.cells import build_sweep
from fastrot.benchmarks.sweep.report.times import loaders_section, times_section
from fastrot.report.html.blocks import Figure

Make = Callable[..., CellRecord]


def test_a_step_is_waiting_and_the_rest(cell: Make) -> None:
    records = [cell({"data.workers": 1}, (100.0,), data_wait=(0.25,)), cell({"data.workers": 2})]
    (figure,) = times_section(build_sweep("x", records)).blocks
    assert isinstance(figure, Figure)
    # 50 images at 100 a second: 500 ms, a quarter of them waiting.
    assert figure.table.rows[0] == ["workers 1", "500", "125", "375", "25.0\u00a0%"]
    assert "workers 1: waits 125 ms for data" in figure.drawing
    assert "The longest wait is 25.0\u00a0% of the time, in workers 1" in figure.alt


def test_of_many_cells_those_that_wait_the_most_are_drawn(cell: Make) -> None:
    records = [cell({"data.workers": n}, data_wait=(n / 100,)) for n in range(30)]
    (figure,) = times_section(build_sweep("x", records)).blocks
    assert isinstance(figure, Figure)
    assert [row[0] for row in figure.table.rows][::23] == ["workers 29", "workers 6"]
    assert figure.note == "The 24 of 30 cells that wait the most, longest first."


def test_a_loader_alone_has_no_step(cell: Make) -> None:
    section = times_section(build_sweep("x", [cell(kind="loader")]))
    assert section.blocks == [] and section.missing


def test_loaders_are_compared_where_all_else_is_the_same(cell: Make) -> None:
    records = [
        cell({"data.loader": name, "data.workers": workers}, (rate, rate))
        for name, workers, rate in (("native", 1, 100), ("ffcv", 1, 80), ("ffcv", 2, 90))
    ]
    (figure,) = loaders_section(build_sweep("x", records)).blocks
    assert isinstance(figure, Figure) and figure.title == "Loaders, views/s (workers 1)"
    assert [row[::3] for row in figure.table.rows] == [
        ["native", "highest median"],
        ["ffcv", "0.80 x"],
    ]
    records[1] = cell({"data.loader": "ffcv", "data.workers": 1}, host="EPYC")
    assert loaders_section(build_sweep("x", records)).blocks == []
