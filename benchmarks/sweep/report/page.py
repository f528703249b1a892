"""The page of a sweep: its summary, its notes and its sections, in their order."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastrot import __version__
from fastrot.benchmarks.sweep.report.cells import ReportCell, Sweep
from fastrot.benchmarks.sweep.report.comparable import differences
from fastrot.benchmarks.sweep.report.compare import Comparison
from fastrot.benchmarks.sweep.report.curves import scaling_section
from fastrot.benchmarks.sweep.report.maps import maps_section
from fastrot.benchmarks.sweep.report.scaling import Efficiency, Series
from fastrot.benchmarks.sweep.report.tables import (
    cells_section,
    compared_section,
    counted,
    fastest_section,
    span,
)
from fastrot.benchmarks.sweep.report.times import LOADER, loaders_section, times_section
from fastrot.report.html.blocks import Commands, Section, Table, Tile
from fastrot.report.html.page import Page
from fastrot.report.html.text import clean, percent, plain, short


def build_page(
    sweep: Sweep,
    series: Sequence[Series],
    found: Sequence[Efficiency],
    comparison: Comparison | None,
    folder: Path,
) -> Page:
    """Everything that is known of a sweep, as a page.

    Args:
        sweep: its cells.
        series: cells that scale.
        found: their efficiencies.
        comparison: with a baseline, or None.
        folder: of the sweep.
    """
    sections = [compared_section(comparison)] if comparison else []
    sections += [cells_section(sweep, found), fastest_section(sweep)]
    if len(sweep.names.varying) > 1:
        sections.append(maps_section(sweep))
    if len({figures.ranks for _, figures in sweep.measured()}) > 1:
        sections.append(scaling_section(sweep, series, found))
    sections.append(times_section(sweep))
    if LOADER in sweep.names.varying:
        sections.append(loaders_section(sweep))
    sections += [_environment_section(sweep), _commands_section(folder)]
    return Page(
        title=clean(sweep.name, 80),
        subtitle=_subtitle(sweep),
        tiles=_tiles(sweep, found, comparison),
        notes=list(notes(sweep)),
        sections=sections,
        footer=f"Written by fastrot {__version__} about the sweep {clean(sweep.name, 80)}.",
    )


def counts(sweep: Sweep) -> str:
    """How many cells there are of each status."""
    found: dict[str, int] = {"done": 0}
    for cell in sweep.cells:
        found[cell.status] = found.get(cell.status, 0) + 1
    return ", ".join(f"{number} {status}" for status, number in found.items())


def notes(sweep: Sweep) -> Iterator[str]:
    """What to know before comparing cells."""
    for note in sweep.notes:
        yield f"{note}."
    if len(sweep.environments) > 1:
        first = sweep.environments[0]
        parts = ", ".join(f"{e.name} ({counted(len(e.keys), 'cell')})" for e in sweep.environments)
        yield (
            f"The cells were measured in {len(sweep.environments)} environments: {parts}. No cell "
            "is compared with one of another environment: maps, scaling and rankings are each of "
            "one."
        )
        for other in sweep.environments[1:]:
            lines = "; ".join(differences(first.fields, other.fields))
            yield f"{first.name} and {other.name} differ in: {clean(lines, 600)}."
    busy = [cell for cell, figures in sweep.measured() if figures.is_contaminated]
    if busy:
        names = "; ".join(sweep.label(cell) for cell in busy[:5])
        more = f" and {len(busy) - 5} more" if len(busy) > 5 else ""
        yield (
            f"{counted(len(busy), 'cell')} contaminated: other programs used more than 10 % of the "
            f"cores meanwhile ({names}{more}). Measure again on a quiet machine."
        )


def _subtitle(sweep: Sweep) -> str:
    axes = [f"{sweep.names.short(axis)} ({len(sweep.names.values[axis])})"
            for axis in sweep.names.varying]  # fmt: skip
    parts = [f"Sweep of {counted(len(sweep.cells), 'cell')}: {counts(sweep)}"]
    parts += [f"axes {' x '.join(axes)}"] if axes else []
    parts += [f"all with {sweep.names.fixed()}"] if axes and sweep.names.fixed() else []
    return "; ".join(parts)


def _tiles(sweep: Sweep, found: Sequence[Efficiency], comparison: Comparison | None) -> list[Tile]:
    measured = list(sweep.measured())
    done = f"{len(measured)} of {len(sweep.cells)}"
    others = len(sweep.cells) - len(measured)
    tiles = [Tile(done, "cells measured", f"{others} failed or missing" if others else "")]
    if comparison is not None:
        bad = len(comparison.regressions)
        tiles.append(Tile(str(bad), "regressions", f"of {len(comparison.cells)} cells"))
    if measured:
        cell, figures = max(measured, key=lambda each: each[1].views_per_s.median)
        rate = figures.views_per_s
        note = f"{span(rate)}; {_label(sweep, cell)}"
        tiles.append(Tile(short(rate.median), "views/s, highest median", note))
        cell, figures = max(measured, key=lambda each: each[1].views_per_s_rank.median)
        rate = figures.views_per_s_rank
        note = f"{span(rate)}; {_label(sweep, cell)}"
        tiles.append(Tile(short(rate.median), "views/s a rank, highest median", note))
    shares = [(f.peak_share, cell) for cell, f in measured if f.peak_share is not None]
    if shares:
        share, cell = max(shares, key=lambda each: each[0])
        tiles.append(Tile(percent(100 * share), "highest share of peak", _label(sweep, cell)))
    for mode in ("weak", "strong"):
        of_mode = [each for each in found if each.mode == mode and each.against == "1 rank"]
        if of_mode:
            last = max(of_mode, key=lambda each: each.ranks)
            value = percent(100 * last.efficiency.median)
            note = _label(sweep, sweep.by_key[last.cell])
            tiles.append(Tile(value, f"{mode} scaling, {last.ranks} ranks", note))
    return tiles


def _label(sweep: Sweep, cell: ReportCell) -> str:
    busy = cell.figures is not None and cell.figures.is_contaminated
    return f"{sweep.label(cell)}{'; contaminated' if busy else ''}"


def _environment_section(sweep: Sweep) -> Section:
    section = Section(
        "environment",
        "Environment",
        "What decides whether two measurements may be compared. Cores, threads and memory are in "
        "the records of the cells (report.json): more ranks are given more of them.",
    )
    for environment in sweep.environments:
        rows = [[name, clean(value, 300)] for name, value in environment.fields.items()]
        rows.append(["commit", plain(environment.commits) or "not recorded"])
        rows.append(["measured on", plain(environment.dates) or "not recorded"])
        title = f"Environment {environment.name}: {counted(len(environment.keys), 'cell')}"
        section.blocks.append(Table(["", "recorded"], rows, title, numeric=False))
    if not sweep.environments:
        section.lead = ""
        section.missing.append("environment: no cell was measured")
    return section


def _commands_section(folder: Path) -> Section:
    section = Section(
        "commands",
        "Commands",
        "This page again, and a later sweep beside this one: exit code 79 if a cell became slower. "
        "Keep report.json elsewhere as the baseline.",
    )
    name = shlex.quote(clean(str(folder)))
    kept = shlex.quote(clean(f"{folder.name}-baseline.json"))
    section.blocks.append(
        Commands(
            [
                f"fastrot report {name}",
                f"cp {shlex.quote(clean(str(folder / 'report.json')))} {kept}",
                f"fastrot report {name} --baseline {kept} --threshold 5",
            ]
        )
    )
    return section
