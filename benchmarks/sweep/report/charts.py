"""Charts of a sweep: its scaling, and heat maps over its two largest axes."""

from __future__ import annotations

from collections.abc import Sequence

from fastrot.benchmarks.sweep.report.axes import place, short_names, value_text, values_of
from fastrot.benchmarks.sweep.report.cells import ReportCell, Sweep
from fastrot.benchmarks.sweep.report.figures import Figures
from fastrot.benchmarks.sweep.report.scaling import COUNTS, Efficiency, efficiency
from fastrot.report.charts.heat import Heat, heat_chart
from fastrot.report.charts.lines import Line, line_chart
from fastrot.report.html.blocks import Figure, Key, Section, Table
from fastrot.report.html.text import clean, compact, percent, plain, short, whole_percent

_STYLES = ("s1", "s2", "s3", "s4")
_MOST_MAPS, _MOST_COLUMNS = 6, 10


def scaling_section(sweep: Sweep, found: Sequence[Efficiency]) -> Section:
    """Return a section with a chart of the longest series and a table of all series."""
    section = Section(
        "scaling",
        "Scaling",
        "Weak: the same number of images per step for each rank; strong: for all ranks together. "
        "Efficiency is the rate per rank divided by that of the fewest ranks. Cells are compared "
        "only if their settings differ in nothing but ranks and nodes.",
    )
    members = {cell.key: (cell, figures) for cell, figures in sweep.measured}
    series: dict[tuple[str, str], list[Efficiency]] = {}
    for each in found:
        if each.against != "1 node":
            base = members[each.base]
            first = [efficiency(each.mode, each.against, base, base)]
            series.setdefault((each.mode, each.base), first).append(each)
    if not series:
        section.missing.append("scaling: no two measured cells differ only in their ranks")
        return section
    ordered = sorted(series.values(), key=lambda each: -len(each))
    shown = [each for each in ordered if 2 * len(each) > len(ordered[0])][: len(_STYLES)]
    if len(shown) < len(series):
        section.missing.append(f"{len(series) - len(shown)} more series: their numbers are below")
    counts = sorted({(each.ranks, each.nodes) for line in shown for each in line})
    has_nodes = any(nodes > 1 for _, nodes in counts)
    lines: list[Line] = []
    rows = []
    for line in ordered:
        name = _name(sweep, line[0].mode, *members[line[0].base])
        for each in line:
            low, median, high = (percent(100 * each.efficiency[i]) for i in (1, 0, 2))
            rate = short(members[each.cell][1].views_per_s.median)
            row = [name, str(each.ranks), str(each.nodes), rate, median, f"{low} to {high}"]
            rows.append([*row, each.settings_that_followed or ""])
        if line in shown:
            xs = [float(counts.index((each.ranks, each.nodes))) for each in line]
            ys = [100 * each.efficiency.median for each in line]
            style, dashed = _STYLES[len(lines)], len(lines) % 2 == 1
            lines.append(Line(name, style, xs, ys, dashed=dashed, points=True))
    chart = line_chart(
        lines,
        x_label="ranks / nodes" if has_nodes else "ranks",
        y_format=whole_percent,
        y_from=0,
        rule=(100.0, "ideal"),
        places=[f"{ranks} / {nodes}" if has_nodes else str(ranks) for ranks, nodes in counts],
    )
    keys = [Key(line.style, line.name, "dash" if line.dashed else "line") for line in lines]
    heads = ["series", "ranks", "nodes", "views/s", "efficiency", "spread", "followed the ranks"]
    title = "Views/s per rank, in percent of those of the fewest ranks"
    ends = "; ".join(f"{line.name}: {percent(line.ys[-1] or 0)}" for line in lines)
    alt = f"{title}. At the most ranks, {ends}."
    section.blocks.append(Figure(title, chart, alt, Table(heads, rows, noted=True), keys))
    return section


def _name(sweep: Sweep, mode: str, cell: ReportCell, figures: Figures) -> str:
    batch = figures.global_batch_images
    per_rank = f"{short(batch / figures.ranks)} images per rank"
    images = per_rank if mode == "weak" else f"{batch:,} images"
    others = place(cell.axes, set(sweep.varying) - set(COUNTS))
    return f"{mode}, {images}{others and f', {others}'}{sweep.where(cell)}"


def map_section(sweep: Sweep) -> Section:
    """Return heat maps over the two axes with the most values, one per value of the others."""
    section = Section(
        "map", "Map", "Median views/s over all ranks; a stronger colour is faster within its map."
    )
    row, column = sorted(sweep.varying, key=lambda axis: -len(sweep.axes[axis]))[:2]
    others = [axis for axis in sweep.varying if axis not in (row, column)]
    groups: dict[tuple[str, ...], list[ReportCell]] = {}
    for cell in sweep.cells:
        if row in cell.axes and column in cell.axes:  # without environment: that of most cells
            where = cell.environment or next((each.name for each in sweep.environments), "")
            at = [plain(cell.axes.get(axis)) for axis in others]
            groups.setdefault((where, *at), []).append(cell)
    ordered = sorted(groups.values(), key=lambda cells: -max(c.views_per_s for c in cells))
    figures = [
        _map(sweep, cells, row, column, others) for cells in ordered if _is_grid(cells, row, column)
    ]
    section.blocks += figures[:_MOST_MAPS]
    if len(figures) > _MOST_MAPS:
        section.missing.append(f"{len(figures) - _MOST_MAPS} slower maps: report.csv has all cells")
    return section


def _is_grid(cells: Sequence[ReportCell], row: str, column: str) -> bool:
    """Return whether the axes span a grid, vary independently, and have a figure."""
    rows, columns = (len(values_of([c.axes for c in cells], axis)) for axis in (row, column))
    fits = 2 <= columns <= _MOST_COLUMNS and 2 <= rows
    return fits and 2 * len(cells) > rows * columns and any(cell.figures for cell in cells)


def _map(
    sweep: Sweep, cells: Sequence[ReportCell], row: str, column: str, others: Sequence[str]
) -> Figure:
    rows, columns = (values_of([cell.axes for cell in cells], axis) for axis in (row, column))
    *_, best = ordered = sorted(cells, key=lambda cell: cell.views_per_s)
    rates = [cell.views_per_s for cell in ordered if cell.figures]
    low, span = rates[0], (rates[-1] - rates[0]) or 1.0
    heat_at = {(plain(cell.axes[row]), plain(cell.axes[column])): _heat(sweep, cell, low, span)
               for cell in ordered}  # fmt: skip
    heats = [[heat_at.get((plain(r), plain(c))) for c in columns] for r in rows]
    names = short_names(sweep.axes)
    left, heads = ([value_text(value) for value in values] for values in (rows, columns))
    fixed = place(best.axes, others)
    title = f"Views/s: {names[row]} x {names[column]}{fixed and f' ({fixed})'}{sweep.where(best)}"
    alt = f"{title}: from {short(low)} to {short(rates[-1])}, at {sweep.label(best)}."
    chart = heat_chart(heats, left, heads, row_title=names[row], column_title=names[column])
    body = [[name, *(heat.text if heat else "" for heat in line)]
            for name, line in zip(left, heats, strict=True)]  # fmt: skip
    table = Table([f"{names[row]} / {names[column]}", *heads], body)
    is_busy = any(cell.figures.contaminated for cell in cells if cell.figures)
    return Figure(title, chart, alt, table, note="*: contaminated by other programs." * is_busy)


def _heat(sweep: Sweep, cell: ReportCell, low: float, span: float) -> Heat:
    name, figures = sweep.label(cell), cell.figures
    if figures is None:
        state = "–" if cell.status == "not measured" else cell.status
        return Heat(state, f"{name}: {clean(cell.reason, 200)}", None)
    rate = figures.views_per_s
    text = f"{name}: {short(rate.low)} to {short(rate.high)} views/s in {rate.repeats} repeats"
    mark = "*" * figures.contaminated
    return Heat(f"{compact(rate.median)}{mark}", text, (rate.median - low) / span)
