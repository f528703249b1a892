"""Where the time of a step goes in each cell, and loaders beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastrot.benchmarks.sweep.report.cells import ReportCell, Sweep
from fastrot.benchmarks.sweep.report.comparable import EXECUTION, flat
from fastrot.benchmarks.sweep.report.figures import Figures, overlap, quotient
from fastrot.report.charts.stacked import Part, Stack, stacked_chart
from fastrot.report.html.blocks import Figure, Key, Section, Table
from fastrot.report.html.text import percent, plain, short

_MOST_BARS, _MOST_GROUPS = 24, 8
LOADER = "data.loader"
NO_DIFFERENCE = "no difference beyond the spread"

MeasuredCell = tuple[ReportCell, Figures]


def times_section(sweep: Sweep) -> Section:
    """Stacked bars: waiting for data, and the rest of the step."""
    section = Section(
        "steps",
        "Step time",
        "Mean time of a step: global batch over the median rate, cut by the share of the time that "
        "steps waited for data.",
    )
    for environment in sweep.environments:
        cells = [
            (cell, figures)
            for cell, figures in sweep.measured(environment.name)
            if figures.data_wait is not None
        ]
        if cells:
            section.blocks.append(_bars(sweep, cells, environment.name))
    if not section.blocks:
        section.lead = ""
        section.missing.append("step times: no cell of the trainer was measured")
    return section


def _bars(sweep: Sweep, cells: Sequence[MeasuredCell], environment: str) -> Figure:
    shown = list(cells)
    if len(shown) > _MOST_BARS:
        shown = sorted(shown, key=lambda cell: -_wait(cell[1]))[:_MOST_BARS]
    stacks, rows = [], []
    for cell, figures in shown:
        name, step, share = (
            sweep.names.cell(cell.axes) or "all",
            figures.mean_step_ms,
            _wait(figures),
        )
        waits, works = step * share, step * (1 - share)
        stacks.append(
            Stack(
                name,
                f"{short(step, 3)} ms, {100 * share:.0f} % waits",
                [
                    Part("s2", waits, f"{name}: waits {short(waits, 3)} ms for data"),
                    Part("s1", works, f"{name}: computes {short(works, 3)} ms"),
                ],
            )
        )
        rows.append([name, short(step, 3), short(waits, 3), short(works, 3), percent(100 * share)])
    where = f", environment {environment}" if len(sweep.environments) > 1 else ""
    title = f"Milliseconds of a step{where}"
    most = max(shown, key=lambda cell: _wait(cell[1]))
    alt = (
        f"{title}, {len(shown)} cells. The longest wait is {percent(100 * _wait(most[1]))} of the "
        f"time, in {sweep.label(most[0])}."
    )
    heads = ["cell", "step, ms", "waits for data, ms", "the rest, ms", "waits"]
    note = ""
    if len(shown) < len(cells):
        note = f"The {len(shown)} of {len(cells)} cells that wait the most, longest first."
    keys = [Key("s2", "waits for data", "box"), Key("s1", "computes", "box")]
    return Figure(title, stacked_chart(stacks), alt, Table(heads, rows), keys, note)


def _wait(figures: Figures) -> float:
    return min(1.0, figures.data_wait.median) if figures.data_wait is not None else 0.0


def loaders_section(sweep: Sweep) -> Section:
    """Loaders beside each other, where cells differ in the loader alone."""
    section = Section(
        "loaders",
        "Loaders",
        "Views/s of cells that differ in the loader alone, over the repeats; whiskers from the "
        "least to the largest. Ratios are to the highest median.",
    )
    groups = [group for group in _loader_groups(sweep) if len(group) > 1]
    groups.sort(key=lambda group: -group[0][1].views_per_s.median)
    section.blocks += [_loaders(sweep, group) for group in groups[:_MOST_GROUPS]]
    if len(groups) > _MOST_GROUPS:
        section.missing.append(f"{len(groups) - _MOST_GROUPS} slower groups of loaders")
    if not groups:
        section.lead = ""
        section.missing.append("loaders: no two measured cells differ in their loader alone")
    return section


def _loader_groups(sweep: Sweep) -> Iterator[list[MeasuredCell]]:
    """Cells that are alike but for the loader, the fastest first."""
    groups: dict[tuple[object, ...], list[MeasuredCell]] = {}
    for cell, figures in sweep.measured():
        assert cell.record is not None
        without = EXECUTION - set(cell.axes) | {LOADER}
        axes = tuple(sorted((k, plain(v)) for k, v in cell.axes.items() if k != LOADER))
        config = tuple(
            sorted((k, v) for k, v in flat(cell.record.config).items() if k not in without)
        )
        alike = (cell.environment, cell.record.kind, figures.ranks, figures.nodes, axes, config)
        groups.setdefault(alike, []).append((cell, figures))
    for group in groups.values():
        yield sorted(group, key=lambda each: -each[1].views_per_s.median)


def _loaders(sweep: Sweep, group: Sequence[MeasuredCell]) -> Figure:
    best = group[0][1].views_per_s
    stacks, rows = [], []
    for cell, figures in group:
        name, rate = plain(cell.axes[LOADER]), figures.views_per_s
        span = f"{short(rate.low)} to {short(rate.high)}"
        if figures is group[0][1]:
            beside = "highest median"
        elif overlap(rate, best):
            beside = NO_DIFFERENCE
        else:
            beside = f"{quotient(rate, best).median:.2f} x"
        mark = " *" if figures.is_contaminated else ""
        part = Part("s1", rate.median, f"{name}: {span} views/s")
        stacks.append(
            Stack(name, f"{short(rate.median)}{mark}, {beside}", [part], (rate.low, rate.high))
        )
        rows.append([name, short(rate.median), span, beside])
    others = sweep.names.cell(group[0][0].axes, without=(LOADER,))
    where = f", environment {group[0][0].environment}" if len(sweep.environments) > 1 else ""
    fixed = f" ({others})" if others and len(sweep.names.varying) > 1 else ""
    title = f"Loaders, views/s{fixed}{where}"
    alt = f"{title}: " + "; ".join(f"{row[0]} {row[1]} ({row[3]})" for row in rows) + "."
    table = Table(["loader", "views/s", "spread", "beside the highest"], rows)
    busy = any(figures.is_contaminated for _, figures in group)
    note = "*: contaminated by other programs." if busy else ""
    return Figure(title, stacked_chart(stacks), alt, table, note=note)
