"""Scaling of a sweep: curves beside the ideal, and the efficiency of every cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastrot.benchmarks.sweep.report.cells import Sweep
from fastrot.benchmarks.sweep.report.scaling import Efficiency, Mode, Series, obstacle
from fastrot.benchmarks.sweep.report.tables import counted
from fastrot.report.charts.lines import Line, line_chart
from fastrot.report.html.blocks import Figure, Key, Section, Table
from fastrot.report.html.text import compact, percent, short

_MOST_SERIES = 8
_ROOM = 0.07  # of the axis, for a number
_COUNT_AXES = ("ranks", "nodes", "batch_per_rank", "train.global_batch")


def scaling_section(sweep: Sweep, series: Sequence[Series], found: Sequence[Efficiency]) -> Section:
    """Curves and efficiencies."""
    section = Section(
        "scaling",
        "Scaling",
        "Weak: as many images a step for each rank; strong: as many images a step in all. Only "
        "cells are compared that differ in ranks and nodes, and in nothing else that was set; "
        "efficiency is the rate of a rank over that of a rank of the smaller cell.",
    )
    if not series:
        section.lead = ""
        why = obstacle(sweep)
        section.missing.append(
            f"scaling: no two measured cells differ in their ranks alone{f': {why}' if why else ''}"
        )
        return section
    ordered = sorted(series, key=lambda each: -len(each.cells))
    efficiency = {(each.mode, each.cell, each.base): each for each in found}
    section.blocks += [_curve(sweep, each, efficiency) for each in ordered[:_MOST_SERIES]]
    if len(series) > _MOST_SERIES:
        section.missing.append(f"{len(series) - _MOST_SERIES} more curves: see the efficiencies")
    if found:
        section.blocks.append(_table(sweep, found))
    else:
        section.missing.append("efficiencies: no cell has one rank, or one full node")
    return section


def _curve(
    sweep: Sweep, series: Series, efficiency: Mapping[tuple[Mode, str, str], Efficiency]
) -> Figure:
    cells = series.cells
    first, first_figures = cells[0]
    ranks = [float(figures.ranks) for _, figures in cells]
    rates = [figures.views_per_s.median for _, figures in cells]
    ideal = [rates[0] * rank / ranks[0] for rank in ranks]
    lines = [
        Line("ideal", "s4", ranks, ideal, dashed=True),
        Line("measured", "s1", ranks, rates, points=True),
    ]
    chart = line_chart(
        lines, x_label="ranks", y_mark=compact, x_from=0, y_from=0, x_marks=_marks(ranks)
    )
    batch = first_figures.global_batch
    share = f"{short(batch / first_figures.ranks)} a rank" if series.mode == "weak" else "in all"
    images = "" if series.mode == "weak" else f"{batch:,} "
    fixed = sweep.names.cell(first.axes, without=_COUNT_AXES) if sweep.names.varying else ""
    alone = [part for part in (f"{images}{share}", *_varying(sweep, fixed)) if part]
    title = f"{series.mode.capitalize()} scaling, views/s ({', '.join(alone)})"
    last, last_figures = cells[-1]
    reached = efficiency.get((series.mode, last.key, first.key))
    end = f", efficiency {_range(reached)}" if reached else ""
    alt = (
        f"{title}: from {short(rates[0])} with {counted(first_figures.ranks, 'rank')} to "
        f"{short(rates[-1])} with {last_figures.ranks}, ideal {short(ideal[-1])}{end}."
    )
    body = [
        [
            f"{figures.ranks}",
            f"{figures.nodes}",
            short(rate),
            short(best),
            percent(100 * rate / best),
        ]
        for (_, figures), rate, best in zip(cells, rates, ideal, strict=True)
    ]
    table = Table(["ranks", "nodes", "views/s", "ideal", "of ideal"], body)
    keys = [
        Key("s1", "measured"),
        Key("s4", f"ideal from {counted(first_figures.ranks, 'rank')}", "dash"),
    ]
    note = f"At {last_figures.ranks} ranks {percent(100 * rates[-1] / ideal[-1])} of the ideal."
    return Figure(title, chart, alt, table, keys, note)


def _marks(ranks: Sequence[float]) -> list[float]:
    """Numbers of ranks to stand at the axis, from the largest on, as many as there is room for."""
    marks = [ranks[-1]]
    for rank in reversed(ranks):
        if marks[-1] - rank >= _ROOM * ranks[-1]:
            marks.append(rank)
    return marks


def _varying(sweep: Sweep, fixed: str) -> list[str]:
    """The name of a family, unless it only repeats what all cells have in common."""
    has = any(axis not in _COUNT_AXES for axis in sweep.names.varying)
    return [fixed] if has and fixed else []


def _table(sweep: Sweep, found: Sequence[Efficiency]) -> Table:
    heads = ["cell", "scaling", "against", "speed-up", "efficiency", "spread", "notes"]
    rows = [
        [
            sweep.label(sweep.by_key[each.cell]),
            each.mode,
            f"{each.against} ({each.base_ranks} of {each.ranks})",
            f"{each.speedup.median:.2f}",
            percent(100 * each.efficiency.median),
            f"{percent(100 * each.efficiency.low)} to {percent(100 * each.efficiency.high)}",
            _notes(sweep, each),
        ]
        for each in found
    ]
    return Table(heads, rows, "Efficiencies", open=True, noted=True)


def _notes(sweep: Sweep, each: Efficiency) -> str:
    found = [f"followed the ranks: {each.followed}"] if each.followed else []
    busy = [
        name
        for name, key in (("larger", each.cell), ("smaller", each.base))
        if (figures := sweep.by_key[key].figures) is not None and figures.is_contaminated
    ]
    found += [f"contaminated: the {' and the '.join(busy)} cell"] if busy else []
    return "; ".join(found)


def _range(each: Efficiency) -> str:
    low, high = each.efficiency.low, each.efficiency.high
    return f"{percent(100 * low)} to {percent(100 * high)}"
