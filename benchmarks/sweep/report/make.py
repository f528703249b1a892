"""``fastrot report SWEEP``: read the cells, compare them, write a page, a table and an object."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fastrot import __version__
from fastrot.benchmarks.sweep.report.cells import FORMAT, Sweep, read_sweep
from fastrot.benchmarks.sweep.report.comparable import Environment
from fastrot.benchmarks.sweep.report.compare import Comparison, compare, read_baseline
from fastrot.benchmarks.sweep.report.csv_rows import to_csv
from fastrot.benchmarks.sweep.report.page import build_page, counts, notes
from fastrot.benchmarks.sweep.report.scaling import Efficiency, efficiencies, scaling_series
from fastrot.benchmarks.sweep.report.terminal import show_cells, show_comparison
from fastrot.errors import StorageError, UsageError
from fastrot.report.html.page import render
from fastrot.system.files import write_atomic

THRESHOLD = 5.0


@dataclass(frozen=True)
class SweepReport:
    """What was written about a sweep.

    Attributes:
        paths: the page, the table, the object.
        sweep: its cells.
        found: efficiencies of scaling.
        comparison: with a baseline, or None.
    """

    paths: tuple[Path, Path, Path]
    sweep: Sweep
    found: tuple[Efficiency, ...]
    comparison: Comparison | None

    @property
    def exit_code(self) -> int:
        """0, or 79 if a cell is slower than in the baseline."""
        return 0 if self.comparison is None else self.comparison.exit_code

    def to_json(self) -> dict[str, Any]:
        """Plain values: what ``report.json`` holds, which is all that is known."""
        return {
            "format": FORMAT,
            "fastrot": __version__,
            "sweep": self.sweep.name,
            "notes": list(notes(self.sweep)),
            "environments": [_environment(each) for each in self.sweep.environments],
            "cells": [cell.to_json() for cell in self.sweep.cells],
            "scaling": [each.to_json() for each in self.found],
            "comparison": None if self.comparison is None else self.comparison.to_json(),
        }

    def show(self, console: Console) -> None:
        """Print the cells, the comparison, and where the files are."""
        show_cells(self.sweep, console)
        lines = [f"note: {line}" for line in notes(self.sweep)]
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if self.comparison is not None:
            show_comparison(self.comparison, console)
        console.print(f"{counts(self.sweep)}", markup=False, highlight=False)
        for path in self.paths:
            console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def make_sweep_report(
    folder: Path,
    out: Path | None = None,
    *,
    baseline: Path | None = None,
    threshold: str | None = None,
) -> SweepReport:
    """Write ``report.html``, ``report.csv`` and ``report.json``: the same bytes for the same cells.

    A sweep that is going on is only read: what is not recorded yet is not measured.

    Args:
        folder: of the sweep.
        out: folder for the files, or name of the page, beside which the other two are written;
            None: the sweep's folder.
        baseline: folder or ``report.json`` of an earlier sweep.
        threshold: percent by which a cell may be slower than there, ``5`` or ``5%``; None: 5.

    Raises:
        UsageError: a folder or file is not what it should be, or a package is missing.
        BadDataError: the baseline is damaged.
        StorageError: a file cannot be written.
    """
    if threshold is not None and baseline is None:
        raise UsageError(f"--threshold={threshold} is for --baseline; name one, or leave it out")
    sweep = read_sweep(folder)
    paths = _paths(folder, out)
    comparison = None
    if baseline is not None:
        if any(path.exists() and path.samefile(baseline) for path in paths if baseline.exists()):
            raise UsageError(
                f"--baseline {baseline} would be overwritten by this report: copy it elsewhere "
                "first, or write elsewhere with --out"
            )
        name = baseline.name if baseline.is_absolute() else str(baseline)
        comparison = compare(sweep, read_baseline(baseline), _percent(threshold), name)
    series = scaling_series(sweep)
    found = tuple(efficiencies(series))
    report = SweepReport(paths, sweep, found, comparison)
    page = build_page(sweep, series, found, comparison, folder)
    texts = (
        render(page),
        to_csv(sweep, found),
        json.dumps(_finite(report.to_json()), allow_nan=False, default=str, indent=1) + "\n",
    )
    for path, text in zip(paths, texts, strict=True):
        try:
            write_atomic(path, text.encode("utf-8", "replace"))
        except OSError as error:
            raise StorageError(
                f"{path}: cannot be written ({error.strerror or error}); name another folder "
                "with --out"
            ) from None
    return report


def _finite(tree: Any) -> Any:
    """Plain values with null for what JSON has no number for: a loss may be NaN."""
    if isinstance(tree, dict):
        return {str(key): _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _percent(threshold: str | None) -> float:
    if threshold is None:
        return THRESHOLD
    try:
        return float(threshold.strip().removesuffix("%"))
    except ValueError:
        raise UsageError(
            f"--threshold={threshold} must be a number in percent, as 5 or 5%"
        ) from None


def _paths(folder: Path, out: Path | None) -> tuple[Path, Path, Path]:
    page = out or folder
    if page.suffix != ".html":
        page = page / "report.html"
        if out is not None:
            try:
                out.mkdir(exist_ok=True)
            except OSError as error:
                raise StorageError(
                    f"--out {out}: no folder can be made there ({error.strerror or error}); name "
                    "another"
                ) from None
    return page, page.with_suffix(".csv"), page.with_suffix(".json")


def _environment(each: Environment) -> dict[str, Any]:
    return {
        "name": each.name,
        "fields": dict(each.fields),
        "cells": list(each.keys),
        "commits": list(each.commits),
        "dates": list(each.dates),
    }
