"""The cells of a sweep as tables: all of them, the fastest, and beside a baseline."""

from __future__ import annotations

from collections.abc import Sequence

from fastrot.benchmarks.common.harness import Spread
from fastrot.benchmarks.sweep.report.cells import ReportCell, Sweep, place, value
from fastrot.benchmarks.sweep.report.compare import REGRESSIONS, Comparison
from fastrot.benchmarks.sweep.report.figures import Figures, overlap, quotient
from fastrot.benchmarks.sweep.report.scaling import Efficiency, by_cell
from fastrot.benchmarks.sweep.report.times import NO_DIFFERENCE
from fastrot.report.html.blocks import Section, Table
from fastrot.report.html.text import clean, percent, short

_HEADS = (
    *("state", "views/s", "±", "views/s a rank", "data wait", "bound by", "step p50, ms", "p95"),
    *("p99", "of peak", "memory, GiB", "weak", "strong", "images/s", "images/s a rank"),
    *("loader ceiling, images/s", "compute ceiling, images/s", "notes"),
)
_TOP = 8
_NONE = "–"


def cells_section(sweep: Sweep, found: Sequence[Efficiency]) -> Section:
    """Every cell in one table, measured or not."""
    section = Section(
        "cells",
        "Cells",
        "Every cell, measured or not. A rank is one process, on one GPU where there are any. Rates "
        "are medians over the repeats, with half the distance from the least to the largest; "
        "ceilings are of all ranks; memory is the most of a rank; weak and strong are efficiencies "
        "against one rank.",
    )
    scaling = by_cell(found)
    heads = [*map(sweep.names.short, sweep.names.varying), *_HEADS]
    if len(sweep.environments) > 1 or not sweep.names.varying:
        heads.insert(len(sweep.names.varying), "in")
    rows = [[*_place(sweep, cell), *_row(cell, scaling.get(cell.key, []))] for cell in sweep.cells]
    if rows:
        title = f"All {len(rows)} cells"
        section.blocks.append(Table(heads, rows, title, open=True, noted=True))
    else:
        section.missing.append("cells: none is recorded, and sweep.yaml names none")
    return section


def _place(sweep: Sweep, cell: ReportCell) -> list[str]:
    """One cell of the table for each axis that varies, and the environment."""
    names = sweep.names
    axes = [value(cell.axes[axis]) if axis in cell.axes else _NONE for axis in names.varying]
    if not axes:
        return [sweep.label(cell)]
    if not any(axis in cell.axes for axis in names.varying):
        axes[0] = clean(cell.key, 20)
    return [*axes, cell.environment or _NONE] if len(sweep.environments) > 1 else axes


def _row(cell: ReportCell, scaling: Sequence[Efficiency]) -> list[str]:
    figures = cell.figures
    if figures is None:
        why = "" if cell.reason == cell.status else f": {clean(cell.reason, 400)}"
        return [f"{state(cell)}{why}"]
    step = [_known(figures.step_ms.get(part)) for part in ("p50", "p95", "p99")]
    wait = figures.data_wait
    memory = figures.memory_bytes
    share = figures.peak_share
    against_one = {each.mode: each.efficiency.median for each in scaling
                   if each.against == "1 rank"}  # fmt: skip
    return [
        state(cell),
        short(figures.views_per_s.median),
        half(figures.views_per_s),
        short(figures.views_per_s_rank.median),
        _NONE if wait is None else percent(100 * wait.median),
        figures.bound,
        *step,
        _NONE if share is None else percent(100 * share),
        _NONE if memory is None else f"{memory / 2**30:.2f}",
        *(percent(100 * against_one[mode]) if mode in against_one else _NONE
          for mode in ("weak", "strong")),
        short(figures.images_per_s.median),
        short(figures.images_per_s_rank.median),
        _known(figures.loader_ceiling),
        _known(figures.compute_ceiling),
        "; ".join(notes(cell, figures)),
    ]  # fmt: skip


def state(cell: ReportCell) -> str:
    """What became of a cell, in a word or two with a mark."""
    if cell.figures is not None:
        return "contaminated" if cell.figures.is_contaminated else "done"
    return "– not measured" if cell.status == "not measured" else f"✗ {cell.status}"


def notes(cell: ReportCell, figures: Figures) -> list[str]:
    """What to know of a measured cell."""
    found = [figures.verdict]
    if figures.is_contaminated:
        found.append(f"others used {100 * (figures.busy or 0):.0f} % of the cores: measure again")
    if figures.images_per_s.repeats < 2:
        found.append("one repeat: its spread is not known")
    if cell.record is not None and cell.record.attempts > 1:
        found.append(f"{cell.record.attempts} attempts")
    if not cell.is_expected:
        found.append("no longer asked for: of other code, settings or data")
    return found


def fastest_section(sweep: Sweep) -> Section:
    """The fastest cells for each number of ranks; where spreads overlap, none is the faster."""
    section = Section(
        "fastest",
        "Fastest cells",
        "Among cells of as many ranks, by views/s. A cell whose spread overlaps that of the first "
        "is not slower as far as can be told.",
    )
    groups: dict[tuple[str, str, int, int], list[tuple[ReportCell, Figures]]] = {}
    for cell, figures in sweep.measured():
        key = (cell.environment, figures.kind, figures.ranks, figures.nodes)
        groups.setdefault(key, []).append((cell, figures))
    for (environment, kind, ranks, nodes), cells in sorted(groups.items()):
        if len(cells) < 2:
            continue
        cells.sort(key=lambda each: -each[1].views_per_s.median)
        best = cells[0][1].views_per_s
        rows = [
            [
                sweep.label(cell),
                short(figures.views_per_s.median),
                span(figures.views_per_s),
                _beside(figures.views_per_s, best) if rank else "highest median",
                figures.bound,
                state(cell),
            ]
            for rank, (cell, figures) in enumerate(cells[:_TOP])
        ]
        where = f", environment {environment}" if len(sweep.environments) > 1 else ""
        what = "loader alone" if kind == "loader" else "trainer"
        title = f"{counted(ranks, 'rank')} on {counted(nodes, 'node')}, {what}{where}"
        heads = ["cell", "views/s", "spread", "beside the first", "bound by", "state"]
        section.blocks.append(Table(heads, rows, title, open=True))
    if not section.blocks:
        section.lead = ""
        section.missing.append("the fastest cells: no two measured cells have as many ranks")
    return section


def _beside(rate: Spread, best: Spread) -> str:
    return NO_DIFFERENCE if overlap(rate, best) else f"{quotient(rate, best).median:.2f} x"


def compared_section(comparison: Comparison) -> Section:
    """The sweep beside its baseline, regressions first."""
    section = Section(
        "baseline",
        "Beside the baseline",
        f"{clean(comparison.baseline, 200)}: {comparison.summary or 'no cell in either'}. A cell "
        f"is slower if its median fell by more than {short(comparison.threshold)} % and its spread "
        "lies below that of the baseline.",
        warnings=list(comparison.lines),
    )
    rows = [
        [
            place(each.axes),
            f"✗ {each.outcome}" if each.outcome in REGRESSIONS else each.outcome,
            _NONE if each.ratio is None else f"{each.ratio.median:.3f}",
            _NONE if each.ratio is None else f"{each.ratio.low:.3f} to {each.ratio.high:.3f}",
            _NONE if each.now is None else short(each.now.median),
            _NONE if each.then is None else short(each.then.median),
            each.note,
        ]
        for each in comparison.ordered
    ]
    heads = ["cell", "outcome", "ratio", "spread", "views/s now", "views/s then", "notes"]
    if rows:
        section.blocks.append(Table(heads, rows, f"All {len(rows)} cells", open=True, noted=True))
    return section


def span(values: Spread) -> str:
    """Least and largest."""
    return f"{short(values.low)} to {short(values.high)}"


def half(values: Spread) -> str:
    """Half of the spread, in percent of the median; of one repeat it is not known."""
    return f"{50 * (values.high - values.low) / values.median:.1f} %" if values.repeats > 1 else "?"


def counted(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _known(value: float | None) -> str:
    return _NONE if value is None else short(value)
