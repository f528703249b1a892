"""Heat maps of a sweep: pairs of axes, one slice each, nothing mixed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from fastrot.benchmarks.sweep.record import CellRecord
from fastrot.benchmarks.sweep.report.cells import build_sweep
from fastrot.benchmarks.sweep.report.maps import maps_section
from fastrot.report.html.blocks import Figure

Make = Callable[..., CellRecord]


def maps(*records: CellRecord, expected: dict[str, dict[str, int]] | None = None) -> list[Figure]:
    blocks = maps_section(build_sweep("x", records, expected)).blocks
    return [block for block in blocks if isinstance(block, Figure)]


def test_two_axes_make_one_map(cell: Make) -> None:
    places = {(w, b): {"data.workers": w, "batch_per_rank": b} for w in (1, 2, 10) for b in (8, 16)}
    records = [
        cell(axes, (w * b,), failed="x" if (w, b) == (2, 8) else None, busy=0.5 * (w == 10))
        for (w, b), axes in places.items()
        if (w, b) != (1, 16)
    ]
    (figure,) = maps(*records, expected={"never": places[1, 16]})
    assert figure.title == "Views/s: workers x batch per rank"
    assert figure.table.heads == ["workers / batch per rank", "8", "16"]
    assert figure.table.rows == [
        ["1", "32", "–"],
        ["2", "failed", "128"],
        ["10", "320*", "640*"],
    ]
    assert "from 32 to 640, at workers 10, batch per rank 16" in figure.alt
    assert figure.note == "*: contaminated by other programs."


def test_workers_and_batch_come_first_in_every_slice(cell: Make) -> None:
    grid = itertools.product(("native", "ffcv"), (1, 2), (8, 16))
    figures = maps(*(
        cell({"data.loader": name, "data.workers": w, "batch_per_rank": b}, (len(name) * w * b,))
        for name, w, b in grid
    ))  # fmt: skip
    assert [figure.title for figure in figures] == [
        "Views/s: workers x batch per rank (loader native)",
        "Views/s: workers x batch per rank (loader ffcv)",
        "Views/s: loader x workers (batch per rank 16)",
        "Views/s: loader x batch per rank (workers 2)",
    ]
    assert figures[2].table.rows == [["ffcv", "256", "512"], ["native", "384", "768"]]


def test_environments_are_not_mixed(cell: Make) -> None:
    places = [{"data.workers": w, "batch_per_rank": b} for w in (1, 2) for b in (8, 16)]
    records = [cell(axes, (rate,), host=f"host {rate}") for rate in (1, 2) for axes in places]
    figures = maps(*records)
    assert [figure.title[-13:] for figure in figures] == ["environment B", "environment A"]
    assert [figure.table.rows[0][1] for figure in figures] == ["8", "4"]


def test_axes_that_go_together_span_nothing(cell: Make) -> None:
    records = [cell({"ranks": n, "batch_per_rank": 64 // n}) for n in (1, 2, 4)]
    assert maps(*records) == []
