"""The page of a sweep: its summary, notes and sections, in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from fastrot import __version__
from fastrot.benchmarks.sweep.report.cells import Sweep
from fastrot.benchmarks.sweep.report.charts import map_section, scaling_section
from fastrot.benchmarks.sweep.report.comparable import changes
from fastrot.benchmarks.sweep.report.compare import Comparison
from fastrot.benchmarks.sweep.report.scaling import Efficiency
from fastrot.benchmarks.sweep.report.table import cells_table
from fastrot.report.html.blocks import Section, Table
from fastrot.report.html.page import Page
from fastrot.report.html.text import clean, plain, short
from fastrot.system.console import counted


def build_page(sweep: Sweep, found: Sequence[Efficiency], comparison: Comparison | None) -> Page:
    """Return a page about a sweep, its scaling and its baseline."""
    sections = [_baseline_section(comparison)] if comparison else []
    sections.append(_cells_section(sweep, found))
    if len({figures.ranks for _, figures in sweep.measured}) > 1:
        sections.append(scaling_section(sweep, found))
    if len(sweep.varying) > 1:
        sections.append(map_section(sweep))
    sections = [section for section in sections if section.blocks or section.missing]
    name = clean(sweep.name, 80)
    return Page(
        title=name,
        subtitle=f"Sweep of {counted(len(sweep.cells), 'cell')}: {counts(sweep)}",
        tiles=[],
        notes=list(notes(sweep)),
        sections=sections,
        footer=f"Written by fastrot {__version__} about the sweep {name}. {_environments(sweep)}",
    )


def counts(sweep: Sweep) -> str:
    """Return the number of cells with each status, as text."""
    found = Counter({"done": 0})
    found.update(cell.status for cell in sweep.cells)
    return ", ".join(f"{number} {status}" for status, number in found.items())


def notes(sweep: Sweep) -> Iterator[str]:
    """Yield notes to read before comparing cells."""
    yield from (f"{note}." for note in sweep.notes)
    if len(sweep.environments) > 1:
        first, *others = sweep.environments
        parts = ", ".join(f"{e.name} ({counted(len(e.cells), 'cell')})" for e in sweep.environments)
        yield (
            f"The cells were measured in {len(sweep.environments)} environments: {parts}. No cell "
            "is compared with one of another environment."
        )
        for other in others:
            lines = clean(", ".join(changes(first.fields, other.fields)), 600)
            yield f"{first.name} and {other.name} differ in: {lines}."
    busy = [sweep.label(cell) for cell, figures in sweep.measured if figures.contaminated]
    if busy:
        more = f" and {len(busy) - 5} more" if len(busy) > 5 else ""
        yield (
            f"{counted(len(busy), 'cell')} contaminated: other programs used more than 10 % of the "
            f"cores meanwhile ({'; '.join(busy[:5])}{more}). Measure again on a quiet machine."
        )


def _environments(sweep: Sweep) -> str:
    """Return what was equal for the cells that may be compared, as text."""
    texts = []
    for each in sweep.environments:
        known = {**each.fields, "commit": plain(each.commits), "date": plain(each.dates)}
        fields = ", ".join(f"{name} {clean(text, 300)}" for name, text in known.items())
        texts.append(f"Environment {each.name}: {fields}.")
    return " ".join(texts)


def _baseline_section(comparison: Comparison) -> Section:
    """Return the comparison with the baseline, regressions first."""
    section = Section(
        "baseline",
        "Comparison with the baseline",
        f"{clean(comparison.baseline, 200)}: {comparison.summary or 'no cell in either'}. A cell "
        f"is slower if its median fell by more than {short(comparison.threshold)} % and its spread "
        "is below that of the baseline.",
        warnings=list(comparison.lines),
    )
    heads = ["cell", "outcome", "ratio", "spread", "views/s now", "views/s then", "notes"]
    rows = [each.row() for each in comparison.ordered()]
    section.blocks.append(Table(heads, rows, counted(len(rows), "cell"), open=True, noted=True))
    return section


def _cells_section(sweep: Sweep, found: Sequence[Efficiency]) -> Section:
    """Return every cell in one table, measured or not."""
    section = Section(
        "cells",
        "Cells",
        "A rank is one process, on one GPU if there are any. Rates are medians over the repeats, "
        "± half the distance from the smallest to the largest; weak and strong are scaling "
        "efficiencies relative to one rank; memory is that of the rank that used the most. "
        "report.csv has every figure.",
    )
    if not sweep.cells:
        section.missing.append("cells: none is recorded, and sweep.yaml lists none")
        return section
    section.blocks.append(cells_table(sweep, found))
    return section
