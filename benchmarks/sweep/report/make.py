"""``fastrot report SWEEP``: reads the cells, compares them, and writes HTML, CSV and JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fastrot import __version__
from fastrot.benchmarks.common.points_report import say
from fastrot.benchmarks.sweep.report.cells import FORMAT, Sweep, read_sweep
from fastrot.benchmarks.sweep.report.compare import Comparison, compare, read_baseline
from fastrot.benchmarks.sweep.report.csv_rows import to_csv
from fastrot.benchmarks.sweep.report.figures import to_plain
from fastrot.benchmarks.sweep.report.page import build_page, counts, notes
from fastrot.benchmarks.sweep.report.scaling import Efficiency, efficiencies
from fastrot.benchmarks.sweep.report.terminal import show_comparison
from fastrot.errors import StorageError, UsageError
from fastrot.report.html.page import render
from fastrot.system.files import write_atomic

THRESHOLD = 5.0


@dataclass(frozen=True)
class SweepReport:
    """The report on a sweep, and its HTML, CSV and JSON files."""

    paths: tuple[Path, Path, Path]
    sweep: Sweep
    found: tuple[Efficiency, ...]
    comparison: Comparison | None

    @property
    def exit_code(self) -> int:
        """Return 0, or 79 if a cell is slower than in the baseline."""
        return 0 if self.comparison is None else self.comparison.exit_code

    def to_json(self) -> dict[str, Any]:
        """Return the contents of ``report.json``: everything that is known."""
        tree: dict[str, Any] = _finite(
            {
                "format": FORMAT,
                "fastrot": __version__,
                "sweep": self.sweep.name,
                "notes": list(notes(self.sweep)),
                "environments": [asdict(each) for each in self.sweep.environments],
                "cells": [cell.to_json() for cell in self.sweep.cells],
                "scaling": [to_plain(each) for each in self.found],
                "comparison": None if self.comparison is None else self.comparison.to_json(),
            }
        )
        return tree

    def show(self, console: Console) -> None:
        """Print the notes, the comparison, and the paths of the files."""
        for note in notes(self.sweep):
            say(console, f"note: {note}")
        if self.comparison is not None:
            show_comparison(self.comparison, console)
        say(console, counts(self.sweep))
        for path in self.paths:
            say(console, str(path))


def make_sweep_report(
    folder: Path,
    out: Path | None = None,
    *,
    baseline: Path | None = None,
    threshold: str | None = None,
) -> SweepReport:
    """Write ``report.html``, ``report.csv`` and ``report.json``: the same bytes for the same cells.

    A running sweep is only read; cells that are not recorded yet are shown as not measured.

    Args:
        folder: folder of the sweep.
        out: folder for the files, or name of the page; None: the sweep's folder.
        baseline: folder or ``report.json`` of an earlier sweep.
        threshold: allowed slowdown of a cell in percent, ``5`` or ``5%``; None: 5.

    Raises:
        UsageError: a folder or file is not as expected, or a package is missing.
        BadDataError: the baseline is damaged.
        StorageError: a file cannot be written.
    """
    if threshold is not None and baseline is None:
        raise UsageError(f"--threshold={threshold} is for --baseline; name one, or omit it")
    sweep = read_sweep(folder)
    page = out or folder
    page = page if page.suffix == ".html" else page / "report.html"
    paths = (page, page.with_suffix(".csv"), page.with_suffix(".json"))
    comparison = None
    if baseline is not None:
        if baseline.exists() and folder.samefile(baseline):
            raise UsageError(f"--baseline {baseline} is the sweep itself; name an earlier one")
        if any(path.exists() and path.samefile(baseline) for path in paths if baseline.exists()):
            raise UsageError(
                f"--baseline {baseline} would be overwritten by this report: copy it elsewhere "
                "first, or write elsewhere with --out"
            )
        name = baseline.name if baseline.is_absolute() else str(baseline)
        comparison = compare(sweep, read_baseline(baseline), _percent(threshold), name)
    found = tuple(efficiencies(sweep))
    report = SweepReport(paths, sweep, found, comparison)
    texts = (
        render(build_page(sweep, found, comparison)),
        to_csv(sweep, found),
        json.dumps(report.to_json(), allow_nan=False, default=str, indent=1) + "\n",
    )
    for path, text in zip(paths, texts, strict=True):
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, text.encode("utf-8", "replace"))
        except OSError as error:
            raise StorageError(
                f"{path}: cannot be written ({error.strerror or error}); name another folder "
                "with --out"
            ) from None
    return report


def _finite(tree: Any) -> Any:
    """Return plain values with None for numbers that JSON lacks: a loss may be NaN."""
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
        message = f"--threshold={threshold} must be a number in percent, such as 5 or 5%"
        raise UsageError(message) from None
