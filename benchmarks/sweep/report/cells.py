"""The cells of a sweep: measured, failed, damaged, or expected and not there; and their names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from fastrot.benchmarks.sweep.record import CellRecord, cell_of_json, read_cell
from fastrot.benchmarks.sweep.report.comparable import Environment, environments
from fastrot.benchmarks.sweep.report.figures import Figures, figures_of
from fastrot.errors import BadDataError, UsageError
from fastrot.report.html.text import clean, plain

Status = Literal["done", "failed", "damaged", "not measured"]

FORMAT = 1
"""Of ``report.json``."""
_MOST_BYTES = 64 * 2**20
_LONGEST = 60  # characters of a name or a value
_OLDER = "not measured with this code on this machine; an older record of the same axes is there"


@dataclass(frozen=True)
class ReportCell:
    """One cell, as a report shows it.

    Attributes:
        key: name of its files.
        axes: where it lies.
        status: what became of it.
        reason: why it has no figures; empty if it has.
        is_expected: whether the sweep asks for it now; what older code measured it does not.
        environment: name of the one it was measured in; empty if it was not.
        record: what is kept of it.
        figures: what follows from its measurements.
    """

    key: str
    axes: Mapping[str, Any]
    status: Status
    reason: str = ""
    is_expected: bool = True
    environment: str = ""
    record: CellRecord | None = None
    figures: Figures | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "key": self.key,
            "axes": dict(self.axes),
            "status": self.status,
            "reason": self.reason or None,
            "expected": self.is_expected,
            "environment": self.environment or None,
            "figures": None if self.figures is None else self.figures.to_json(),
            "record": None if self.record is None else asdict(self.record),
        }


class AxisNames:
    """The axes of a sweep, in their order, and short names for them.

    Args:
        places: axes of every cell.
    """

    def __init__(self, places: Sequence[Mapping[str, Any]]) -> None:
        self.all = list(dict.fromkeys(axis for axes in places for axis in axes))
        self.values = {axis: values_of(places, axis) for axis in self.all}
        self.varying = [axis for axis in self.all if len(self.values[axis]) > 1]
        ends = Counter(axis.rpartition(".")[2] for axis in self.all)
        self._short = {
            axis: clean(end if ends[end := axis.rpartition(".")[2]] == 1 else axis, _LONGEST)
            for axis in self.all
        }

    def short(self, axis: str) -> str:
        """An axis without its section, if that tells it from the others."""
        return self._short[axis].replace("_", " ")

    def cell(self, axes: Mapping[str, Any], without: Sequence[str] = ()) -> str:
        """Where a cell lies, on one line; axes with one value are told once, by ``fixed``."""
        shown = self.varying or self.all
        parts = [f"{self.short(axis)} {value(axes[axis])}" for axis in shown
                 if axis in axes and axis not in without]  # fmt: skip
        return ", ".join(parts)

    def fixed(self) -> str:
        """The axes that have one value."""
        fixed = [axis for axis in self.all if axis not in self.varying]
        return ", ".join(f"{self.short(axis)} {value(self.values[axis][0])}" for axis in fixed)

    def sort_key(self, axes: Mapping[str, Any]) -> list[tuple[int, float, str]]:
        """Order of the cells: by their axes, numbers as numbers."""
        return [_rank(axes.get(axis)) for axis in self.all]


@dataclass(frozen=True)
class Sweep:
    """All cells of a sweep, in the order of their axes.

    Attributes:
        name: of the sweep.
        cells: every one that is recorded or expected.
        environments: of what was measured.
        names: of its axes.
        notes: what could not be read.
    """

    name: str
    cells: Sequence[ReportCell]
    environments: Sequence[Environment]
    names: AxisNames
    notes: Sequence[str] = ()
    by_key: Mapping[str, ReportCell] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_key", {cell.key: cell for cell in self.cells})

    def measured(self, environment: str | None = None) -> Iterator[tuple[ReportCell, Figures]]:
        """The cells that have figures, of one environment or of all."""
        for cell in self.cells:
            if cell.figures is not None and environment in (None, cell.environment):
                yield cell, cell.figures

    def label(self, cell: ReportCell) -> str:
        """Name of a cell for people, with its environment where there are several."""
        name = self.names.cell(cell.axes) or (f"cell {clean(cell.key, 12)}")
        many = len(self.environments) > 1 and cell.environment
        return f"{name} [{cell.environment}]" if many else name


def is_sweep(path: Path) -> bool:
    """Whether a folder is one of a sweep, and not of a run."""
    return (path / "cells").is_dir() or (path / "sweep.yaml").is_file()


def read_sweep(path: Path) -> Sweep:
    """Read a sweep's folder; a damaged record is a cell, not a failure.

    Raises:
        UsageError: it is no such folder.
    """
    if not is_sweep(path):
        what = "no folder of a sweep" if path.exists() else "no such folder"
        raise UsageError(
            f"{path}: {what}; name a folder that `fastrot bench sweep` has written, with "
            "sweep.yaml or cells/ in it"
        )
    expected, notes = _expected(path / "sweep.yaml")
    records: list[CellRecord] = []
    damaged: dict[str, str] = {}
    for file in sorted((path / "cells").glob("*.json")):
        try:
            records.append(_checked(read_cell(file), file))
        except BadDataError as error:
            damaged[file.stem] = str(error).replace(f"{file}: ", "", 1)
    name = records[0].sweep if records else path.resolve().name
    return build_sweep(str(name), records, expected, damaged, notes)


def build_sweep(
    name: str,
    records: Sequence[CellRecord],
    expected: Mapping[str, Mapping[str, Any]] | None = None,
    damaged: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Sweep:
    """Put together what is known of the cells.

    Args:
        name: of the sweep.
        records: of cells.
        expected: axes by key; None: it is not known which cells there should be.
        damaged: what is wrong with a record, by key.
        notes: what could not be read.
    """
    damaged = dict(damaged or {})
    figures: dict[str, Figures] = {}
    for record in records:
        try:
            if (found := figures_of(record)) is not None:
                figures[record.key] = found
        except (ValueError, TypeError, OverflowError) as error:
            damaged[record.key] = f"not the record of a cell ({error}); remove it and measure again"
    sound = {record.key: record for record in records if record.key not in damaged}
    groups = environments([sound[key] for key in figures])
    group_of = {key: group.name for group in groups for key in group.keys}
    cells = [
        ReportCell(
            key,
            record.axes,
            record.status,
            "" if record.status == "done" else (record.reason or "no reason was recorded"),
            expected is None or key in expected,
            group_of.get(key, ""),
            record,
            figures.get(key),
        )
        for key, record in sound.items()
    ]
    asked = expected or {}
    cells += [ReportCell(key, asked.get(key, {}), "damaged", why) for key, why in damaged.items()]
    known = [cell.axes for cell in cells]
    cells += [
        ReportCell(key, axes, "not measured", _OLDER if axes in known else "not measured")
        for key, axes in asked.items()
        if key not in sound and key not in damaged
    ]
    names = AxisNames([cell.axes for cell in cells])
    cells.sort(
        key=lambda cell: (
            names.sort_key(cell.axes), not cell.environment, cell.environment, cell.key
        )
    )  # fmt: skip
    return Sweep(name, cells, groups, names, tuple(notes))


def _checked(record: CellRecord, path: Path) -> CellRecord:
    """The record, if its parts are what they should be: anyone may have written the file."""
    texts = (record.key, record.sweep, record.kind, record.code, record.host, record.reason or "")
    parts = (record.axes, record.config, record.record)
    sound = (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(part, dict) for part in parts)
        and record.kind in ("train", "loader")
        and record.status in ("done", "failed")
    )
    if not sound:
        raise BadDataError(
            f"{path}: not the record of a cell (a field is of the wrong type); remove it, and "
            "`fastrot bench sweep` measures the cell again"
        )
    return record


def _expected(path: Path) -> tuple[dict[str, dict[str, Any]] | None, list[str]]:
    """Axes by key of the cells that a sweep asks for, and what is wrong with the file."""
    unknown = "so cells that were never recorded are not listed"
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None, [f"sweep.yaml is larger than {_MOST_BYTES} bytes, {unknown}"]
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        cells = tree["cells"]
        found = {}
        for cell in cells:
            if not isinstance(cell["key"], str) or not isinstance(cell["axes"], dict):
                raise ValueError("a cell without key and axes")
            found[cell["key"]] = {str(axis): value for axis, value in cell["axes"].items()}
        return found, []
    except FileNotFoundError:
        return None, [f"there is no sweep.yaml, {unknown}"]
    except OSError as error:
        return None, [f"sweep.yaml cannot be read ({error.strerror or error}), {unknown}"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        return None, [f"sweep.yaml has no list of cells ({clean(why, 100)}), {unknown}"]


def sweep_of_report(path: Path) -> Sweep:
    """The cells of a ``report.json``.

    Raises:
        BadDataError: it is none.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES} bytes")
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["format"] != FORMAT:
            raise ValueError(f"format {tree['format']!r}, and this fastrot reads {FORMAT}")
        kept = [cell["record"] for cell in tree["cells"] if cell["record"] is not None]
        expected = {cell["key"]: cell["axes"] for cell in tree["cells"] if cell["expected"]}
        records = [_checked(cell_of_json(record, path), path) for record in kept]
        return build_sweep(str(tree["sweep"]), records, expected)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadDataError(
            f"{path}: not the report.json of a sweep ({type(error).__name__}: {error}); name the "
            "report.json or the folder of an earlier `fastrot bench sweep`"
        ) from error


def place(axes: Mapping[str, Any]) -> str:
    """Where a cell lies, by all its axes: for cells of several sweeps."""
    ends = {axis: clean(axis).rpartition(".")[2].replace("_", " ") for axis in axes}
    return ", ".join(f"{ends[axis]} {value(of_axis)}" for axis, of_axis in axes.items())


def values_of(places: Sequence[Mapping[str, Any]], axis: str) -> list[Any]:
    """The values that an axis takes, each once, in their order."""
    found = {plain(axes[axis]): axes[axis] for axes in places if axis in axes}
    return sorted(found.values(), key=_rank)


def value(of_axis: Any) -> str:
    """A value of an axis as text."""
    return clean("auto" if of_axis is None else plain(of_axis), _LONGEST)


def _rank(of_axis: Any) -> tuple[int, float, str]:
    if isinstance(of_axis, int | float) and not isinstance(of_axis, bool):
        return (0, float(of_axis), "")
    return (1, 0.0, plain(of_axis))
