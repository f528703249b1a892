"""Heat maps of a sweep: any two axes with two values or more, workers and batch first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from fastrot.benchmarks.sweep.report.cells import ReportCell, Sweep, value, values_of
from fastrot.report.charts.heat import Heat, heat_chart
from fastrot.report.html.blocks import Figure, Section, Table
from fastrot.report.html.text import clean, compact, plain, short

_MOST_MAPS, _MOST_SLICES, _MOST_COLUMNS, _MOST_ROWS = 12, 6, 10, 24
_BATCHES = ("batch", "global_batch", "batch_per_rank")
_UNKNOWN = {"failed": "failed", "damaged": "damaged", "not measured": "–"}


def maps_section(sweep: Sweep) -> Section:
    """Throughput over pairs of axes."""
    section = Section(
        "maps",
        "Maps",
        "Median views/s over all ranks; the darker, the faster within its map. Where there are "
        "more than two axes, a map shows one value of each other axis, named in its title.",
    )
    maps = [figure for pair in _pairs(sweep) for figure in _maps(sweep, *pair)]
    section.blocks += maps[:_MOST_MAPS]
    if len(maps) > _MOST_MAPS:
        section.missing.append(
            f"{len(maps) - _MOST_MAPS} of {len(maps)} maps: report.csv has every cell"
        )
    if not maps:
        section.lead = ""
        section.missing.append("maps: no two axes span a grid with a measured cell in it")
    return section


def _pairs(sweep: Sweep) -> list[tuple[str, str]]:
    """Pairs of axes: that of workers and batch first."""

    def rank(pair: tuple[str, str]) -> bool:
        ends = {axis.rpartition(".")[2] for axis in pair}
        return not ("workers" in ends and ends & set(_BATCHES))

    pairs = list(itertools.combinations(sweep.names.varying, 2))
    return sorted(pairs, key=rank)


def _maps(sweep: Sweep, one: str, other: str) -> Iterator[Figure]:
    """The maps of two axes, the fastest first."""
    others = [axis for axis in sweep.names.varying if axis not in (one, other)]
    slices: dict[tuple[str, ...], list[ReportCell]] = {}
    for cell in sweep.cells:
        if one in cell.axes and other in cell.axes:
            place = [plain(cell.axes.get(axis)) for axis in others]
            slices.setdefault((_environment(sweep, cell), *place), []).append(cell)
    ordered = sorted(slices.items(), key=lambda item: -_best(item[1]))
    is_first = _pairs(sweep)[0] == (one, other)
    drawn = (
        _map(sweep, cells, one, other, environment)
        for (environment, *_), cells in ordered
        if _best(cells) > 0
    )
    figures = (figure for figure in drawn if figure is not None)
    yield from itertools.islice(figures, _MOST_SLICES if is_first else 1)


def _environment(sweep: Sweep, cell: ReportCell) -> str:
    """The one in whose maps a cell stands: what has none, in those of the most cells."""
    return cell.environment or (sweep.environments[0].name if sweep.environments else "")


def _best(cells: Sequence[ReportCell]) -> float:
    return max((c.figures.views_per_s.median for c in cells if c.figures), default=0.0)


def _map(
    sweep: Sweep, cells: Sequence[ReportCell], one: str, other: str, environment: str
) -> Figure | None:
    places = [cell.axes for cell in cells]
    values = {axis: values_of(places, axis) for axis in (one, other)}
    row, column = (one, other) if len(values[one]) >= len(values[other]) else (other, one)
    size = len(values[one]) * len(values[other])
    if min(len(found) for found in values.values()) < 2 or 2 * len(cells) <= size:
        return None  # the axes go together, or one was not varied here
    if len(values[column]) > _MOST_COLUMNS or len(values[row]) > _MOST_ROWS:
        return None
    names = sweep.names
    ordered = sorted(cells, key=lambda cell: cell.figures is not None)  # what is measured wins
    at = {(plain(cell.axes[row]), plain(cell.axes[column])): cell for cell in ordered}
    rates = [cell.figures.views_per_s.median for cell in cells if cell.figures]
    low, span = min(rates), (max(rates) - min(rates)) or 1.0
    grid = [[at.get((plain(r), plain(c))) for c in values[column]] for r in values[row]]
    heats = [[None if cell is None else _heat(sweep, cell, low, span) for cell in line]
             for line in grid]  # fmt: skip
    rows, columns = ([value(each) for each in values[axis]] for axis in (row, column))
    row_title, column_title = names.short(row), names.short(column)
    fixed = names.cell(cells[0].axes, without=(one, other)) if len(names.varying) > 2 else ""
    where = f", environment {environment}" if len(sweep.environments) > 1 else ""
    title = f"Views/s: {row_title} x {column_title}" + (f" ({fixed})" if fixed else "") + where
    best = max((c for c in cells if c.figures), key=lambda c: _best([c]))
    alt = f"{title}: from {short(low)} to {short(max(rates))}, at {sweep.label(best)}."
    chart = heat_chart(heats, rows, columns, row_title=row_title, column_title=column_title)
    body = [[name, *(_text(cell) for cell in line)] for name, line in zip(rows, grid, strict=True)]
    table = Table([f"{row_title} / {column_title}", *columns], body)
    busy = any(cell.figures.is_contaminated for cell in cells if cell.figures)
    note = "*: contaminated by other programs." if busy else ""
    return Figure(title, chart, alt, table, note=note)


def _heat(sweep: Sweep, cell: ReportCell, low: float, span: float) -> Heat:
    name = sweep.label(cell)
    if cell.figures is None:
        return Heat(_UNKNOWN[cell.status], f"{name}: {clean(cell.reason, 200)}", None)
    rate = cell.figures.views_per_s
    text = f"{name}: {short(rate.low)} to {short(rate.high)} views/s in {rate.repeats} repeats"
    return Heat(_text(cell), text, (rate.median - low) / span)


def _text(cell: ReportCell | None) -> str:
    if cell is None:
        return ""
    if cell.figures is None:
        return _UNKNOWN[cell.status]
    rate = compact(cell.figures.views_per_s.median)
    return f"{rate}*" if cell.figures.is_contaminated else rate
