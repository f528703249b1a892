"""The cells of a sweep: measured, failed, damaged, or expected but missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from fastrot.benchmarks.sweep.record import CellRecord, cell_of_json, read_cell
from fastrot.benchmarks.sweep.report.axes import Axes, place, rank, values_of
from fastrot.benchmarks.sweep.report.comparable import Environment, environments
from fastrot.benchmarks.sweep.report.figures import Figures, figures_of, to_plain
from fastrot.errors import BadDataError, UsageError
from fastrot.report.html.text import clean

FORMAT = 1
"""Format of ``report.json``."""


@dataclass(frozen=True)
class ReportCell:
    """One cell, as a report shows it.

    ``reason`` says why it has no figures; ``is_expected``, whether ``sweep.yaml`` lists it;
    ``environment`` is the name of the environment it was measured in, empty if it was not.
    """

    key: str
    axes: Axes
    status: Literal["done", "failed", "damaged", "not measured"]
    reason: str = ""
    is_expected: bool = True
    environment: str = ""
    record: CellRecord | None = None
    figures: Figures | None = None

    @property
    def views_per_s(self) -> float:
        """Return the total rate of all ranks (median over repeats), in views/s.

        0 if it was not measured.
        """
        return 0.0 if self.figures is None else self.figures.views_per_s.median

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "key": self.key,
            "axes": dict(self.axes),
            "status": self.status,
            "reason": self.reason or None,
            "expected": self.is_expected,
            "environment": self.environment or None,
            "figures": None if self.figures is None else to_plain(self.figures),
            "record": None if self.record is None else asdict(self.record),
        }


@dataclass(frozen=True)
class Sweep:
    """All cells of a sweep, in the order of their axes, and notes on what could not be read."""

    name: str
    cells: Sequence[ReportCell]
    environments: Sequence[Environment]
    notes: Sequence[str] = ()

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """Return the values of each axis, in their order."""
        places = [cell.axes for cell in self.cells]
        return {axis: values_of(places, axis) for axis in _names(places)}

    @cached_property
    def varying(self) -> list[str]:
        """Return the axes that have several values."""
        return [axis for axis, values in self.axes.items() if len(values) > 1]

    @cached_property
    def measured(self) -> list[tuple[ReportCell, Figures]]:
        """Return the cells that have figures."""
        return [(cell, cell.figures) for cell in self.cells if cell.figures is not None]

    def label(self, cell: ReportCell) -> str:
        """Return the display name of a cell, with its environment if there are several."""
        name = place(cell.axes, self.varying or None) or f"cell {clean(cell.key, 12)}"
        return name + self.where(cell)

    def where(self, cell: ReportCell) -> str:
        """Return the suffix that names the environment; empty if there is only one."""
        return f" [{cell.environment}]" * (len(self.environments) > 1 and bool(cell.environment))


@dataclass(frozen=True)
class _Expected:
    key: str
    axes: dict[str, Any]


def is_sweep(path: Path) -> bool:
    """Return whether a folder is that of a sweep, not of a run."""
    return (path / "cells").is_dir() or (path / "sweep.yaml").is_file()


def read_sweep(path: Path) -> Sweep:
    """Read a sweep's folder; a damaged record becomes a damaged cell, not an error.

    Raises:
        UsageError: the path is not the folder of a sweep.
    """
    if not is_sweep(path):
        what = "not the folder of a sweep" if path.exists() else "no such folder"
        raise UsageError(
            f"{path}: {what}; name a folder that `fastrot bench sweep` has written, with "
            "sweep.yaml or cells/ in it"
        )
    expected, notes = _expected(path / "sweep.yaml")
    records: list[CellRecord] = []
    damaged: dict[str, str] = {}
    for file in sorted((path / "cells").glob("*.json")):
        try:
            records.append(read_cell(file))
        except BadDataError as error:
            damaged[file.stem] = str(error).replace(f"{file}: ", "", 1)
    name = records[0].sweep if records else path.resolve().name
    return build_sweep(name, records, expected, damaged, notes)


def read_report(path: Path) -> Sweep:
    """Read the cells of a ``report.json``.

    Raises:
        UsageError: the file cannot be read.
        BadDataError: the file is not such a report.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["format"] != FORMAT:
            raise ValueError(f"format {tree['format']!r}, but this fastrot reads {FORMAT}")
        kept = [cell["record"] for cell in tree["cells"] if cell["record"] is not None]
        expected = {cell["key"]: cell["axes"] for cell in tree["cells"] if cell["expected"]}
        return build_sweep(tree["sweep"], [cell_of_json(each, path) for each in kept], expected)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadDataError(
            f"{path}: not the report.json of a sweep ({type(error).__name__}: {error}); name the "
            "report.json or the folder of an earlier `fastrot bench sweep`"
        ) from error


def build_sweep(
    name: str,
    records: Sequence[CellRecord],
    expected: Mapping[str, Axes] | None = None,
    damaged: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Sweep:
    """Build a sweep from everything that is known about its cells.

    Args:
        name: name of the sweep.
        records: records of cells.
        expected: axes by key; None: the expected cells are unknown.
        damaged: what is wrong with damaged records, by key.
        notes: what could not be read.
    """
    damaged, figures = dict(damaged or {}), {}
    for record in records:
        try:
            figures[record.key] = figures_of(record)
        except ValueError as error:
            damaged[record.key] = f"not the record of a cell ({error}); remove it and measure again"
    sound = [record for record in records if record.key not in damaged]
    found = environments([record for record in sound if record.status == "done"])
    environment_of = {key: each.name for each in found for key in each.cells}
    asked = expected or {}
    cells = [
        ReportCell(
            record.key,
            record.axes,
            record.status,
            "" if record.status == "done" else record.reason or "no reason was recorded",
            expected is None or record.key in expected,
            environment_of.get(record.key, ""),
            record,
            figures[record.key],
        )
        for record in sound
    ]
    cells += [ReportCell(key, asked.get(key, {}), "damaged", why) for key, why in damaged.items()]
    known = {cell.key for cell in cells}
    cells += [
        ReportCell(key, axes, "not measured", "not measured")
        for key, axes in asked.items()
        if key not in known
    ]
    names = _names([cell.axes for cell in cells])

    def order(cell: ReportCell) -> tuple[Any, ...]:
        at = [rank(cell.axes.get(axis)) for axis in names]
        return at, not cell.environment, cell.environment, cell.key

    return Sweep(name, sorted(cells, key=order), found, notes)


def _names(places: Sequence[Axes]) -> list[str]:
    return list(dict.fromkeys(axis for axes in places for axis in axes))


def _expected(path: Path) -> tuple[dict[str, Axes] | None, Sequence[str]]:
    """Return the expected cells, axes by key, and what is wrong with the file."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        cells = TypeAdapter(list[_Expected]).validate_python(tree["cells"])
        return {cell.key: cell.axes for cell in cells}, ()
    except FileNotFoundError:
        why = "there is no sweep.yaml"
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        why = f"sweep.yaml has no list of cells ({clean(' '.join(str(error).split()), 100)})"
    return None, (f"{why}, so cells that were never recorded are not listed",)
