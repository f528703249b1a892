"""The pictures of a sweep: scaling beside the ideal, and heat maps in which nothing is mixed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from fastrot.benchmarks.sweep.record import CellRecord
from fastrot.benchmarks.sweep.report.cells import build_sweep
from fastrot.benchmarks.sweep.report.charts import map_section, scaling_section
from fastrot.benchmarks.sweep.report.scaling import efficiencies
from fastrot.report.html.blocks import Figure, Section

Make = Callable[..., CellRecord]


def scaling(*records: CellRecord) -> Section:
    sweep = build_sweep("tried", records)
    return scaling_section(sweep, efficiencies(sweep))


def maps(*records: CellRecord, expected: dict[str, dict[str, int]] | None = None) -> list[Figure]:
    blocks = map_section(build_sweep("x", records, expected)).blocks
    return [block for block in blocks if isinstance(block, Figure)]


def test_efficiency_is_drawn_beside_the_ideal(cell: Make) -> None:
    records = [cell({"ranks": n}, (rate, rate)) for n, rate in ((1, 100), (2, 180), (8, 600))]
    (figure,) = scaling(*records).blocks
    assert isinstance(figure, Figure)
    assert [row[:5] for row in figure.table.rows] == [
        ["weak, 50 images per rank", "1", "1", "400", "100.0\u00a0%"],
        ["weak, 50 images per rank", "2", "1", "720", "90.0\u00a0%"],
        ["weak, 50 images per rank", "8", "1", "2,400", "75.0\u00a0%"],
    ]
    assert "At the most ranks, weak, 50 images per rank: 75.0\u00a0%" in figure.alt
    assert (
        "weak, 50 images per rank: 75\u00a0% at 8" in figure.drawing and "ideal" in figure.drawing
    )


def test_short_series_stand_in_the_table_alone(cell: Make) -> None:
    grid = itertools.product((64, 128), (1, 2, 4, 8))
    records = [
        cell({"train.global_batch": batch, "ranks": ranks}, global_batch=batch)
        for batch, ranks in grid
    ]
    section = scaling(*records)
    (figure,) = section.blocks
    assert isinstance(figure, Figure)
    assert [key.name for key in figure.legend] == ["strong, 64 images", "strong, 128 images"]
    assert {key.shape for key in figure.legend} == {"line", "dash"}  # not told by colour alone
    assert section.missing == ["3 more series: their numbers are below"]
    assert {row[0] for row in figure.table.rows} > {"weak, 64 images per rank"}


def test_places_are_ranks_and_nodes(cell: Make) -> None:
    places = ((4, 1), (4, 2), (8, 2))
    records = [cell({"ranks": r, "nodes": n}, (100.0 * r / n,)) for r, n in places]
    (figure,) = scaling(*records).blocks
    assert isinstance(figure, Figure)
    assert all(f">{r} / {n}<" in figure.drawing for r, n in places)


def test_it_is_told_that_nothing_scales(cell: Make) -> None:
    two = cell({"ranks": 2}, settings={"train.step": "eager"})
    (line,) = scaling(cell({"ranks": 1}), two).missing
    assert line == "scaling: no two measured cells differ only in their ranks"


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


def test_the_largest_axes_span_the_map_and_each_other_value_has_one(cell: Make) -> None:
    grid = itertools.product(("native", "ffcv"), (1, 2, 4), (8, 16, 32))
    figures = maps(*(
        cell({"data.loader": name, "data.workers": w, "batch_per_rank": b}, (len(name) * w * b,))
        for name, w, b in grid
    ))  # fmt: skip
    assert [figure.title for figure in figures] == [
        "Views/s: workers x batch per rank (loader native)",
        "Views/s: workers x batch per rank (loader ffcv)",
    ]
    assert figures[1].table.rows[0] == ["1", "128", "256", "512"]


def test_environments_are_not_mixed(cell: Make) -> None:
    places = [{"data.workers": w, "batch_per_rank": b} for w in (1, 2) for b in (8, 16)]
    records = [cell(axes, (rate,), host=f"host {rate}") for rate in (1, 2) for axes in places]
    figures = maps(*records)
    assert [figure.title[-3:] for figure in figures] == ["[B]", "[A]"]
    assert [figure.table.rows[0][1] for figure in figures] == ["8", "4"]


def test_axes_that_go_together_span_nothing(cell: Make) -> None:
    assert maps(*(cell({"ranks": n, "batch_per_rank": 64 // n}) for n in (1, 2, 4))) == []
