"""The steps of ``fastrot report RUN``: read the run, build the sections, write one page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fastrot import __version__
from fastrot.errors import FastrotError, StorageError
from fastrot.report.html.blocks import Section
from fastrot.report.html.page import Page, render
from fastrot.report.run.about import (
    commands_section,
    environment_section,
    settings_section,
    subtitle,
    tiles,
)
from fastrot.report.run.curves import curves_section, throughput_section
from fastrot.report.run.dense import dense_section
from fastrot.report.run.files import RunFiles, read_run
from fastrot.report.run.measured import listed, measurements_section, summary
from fastrot.report.run.results import is_dense, read_results
from fastrot.report.run.scores import lowshot_section, scores_section
from fastrot.runs.folder import how_killed, read_run_id
from fastrot.system.console import Say, print_lines
from fastrot.system.files import write_atomic

FILE_NAME = "report.html"


@dataclass(frozen=True)
class ReportResult:
    """A written page.

    Attributes:
        path: path of the page.
        bytes: size of the page.
        sections: ids of the sections that it shows.
        missing: what it does not show and why, one line each.
        measured: one line per measurement.
        measurements: the measurements as plain values.
        exit_code: exit code of the command.
    """

    path: Path
    bytes: int
    sections: tuple[str, ...]
    missing: tuple[str, ...]
    measured: tuple[str, ...] = ()
    measurements: tuple[dict[str, Any], ...] = ()
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "path": str(self.path)}

    def show(self, console: Console) -> None:
        """Print the measurements, what the page does not show, and where it is."""
        lines = [*self.measured, *(f"not shown: {line}" for line in self.missing)]
        print_lines(console, [*lines, f"{self.path} ({self.bytes / 1e6:.1f} MB)"])


def make_report(run: Path, out: Path | None = None, *, say: Say = lambda _: None) -> ReportResult:
    """Write a page about a run; the same files give the same bytes.

    A damaged or missing part becomes a line of the page. A run in progress is only read.

    Args:
        run: the run folder.
        out: path of the page; None: ``report.html`` in the run folder.
        say: called with each line for the user.

    Raises:
        UsageError: ``run`` is not a run folder, or a package is missing.
        StorageError: the page cannot be written.
    """
    files = read_run(Path(run))
    found, problems = read_results(files.path)
    sections = [curves_section(files), throughput_section(files), *_pictures(files, say)]
    sections += [measurements_section(found)]
    sections += [scores_section(found, problems), lowshot_section(found)]
    if any(is_dense(one.result) for one in found):
        sections.append(dense_section(found))
    sections += [
        settings_section(files),
        environment_section(files),
        commands_section(files, found),
    ]
    notes = list(files.notes)
    if killed := how_killed(files.path):
        notes.insert(0, f"{killed}; fastrot train --out {files.path} --resume continues it.")
        say(f"{killed}; continue with --resume")
    elif files.is_live:
        notes.insert(0, "The run had not ended when this page was written: it may be out of date.")
    title = files.path.resolve().name or str(files.path)
    run_id = read_run_id(files.path)
    footer = f"Written by fastrot {__version__}" + (f" about run {run_id}." if run_id else ".")
    page = Page(title, subtitle(files), tiles(files), notes, sections, footer)
    data = render(page).encode("utf-8", "replace")
    path = out or files.path / FILE_NAME
    try:
        write_atomic(path, data)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); name another file with --out"
        ) from None
    missing = [*files.notes, *(line for section in sections for line in section.missing)]
    shown = tuple(section.id for section in sections if section.blocks)
    measured = tuple(map(summary, found))
    return ReportResult(path, len(data), shown, tuple(missing), measured, tuple(listed(found)))


def _pictures(files: RunFiles, say: Say) -> list[Section]:
    """Build the sections that need the network or the images; torch is imported only here."""
    from fastrot.report.run import confusion, filters, neighbours, views
    from fastrot.report.run.network import load_network, open_images, reason

    network = images = None
    without_network = without_images = ""
    try:
        network = load_network(files)
    except FastrotError as error:
        without_network = reason(error)
    config = network.config if network is not None else files.config
    try:
        if config is not None:
            images = open_images(files, config)
    except FastrotError as error:
        without_images = reason(error)
    why = without_network or without_images
    if not why and images is not None and not images.held_out:
        why = "the run has no held-out images"
    parts: tuple[tuple[str, str, Callable[[], Section]], ...] = (
        (
            "confusion",
            "confusion matrix",
            lambda: confusion.confusion_section(files, network, images, why, say),
        ),
        ("views", "sample views", lambda: views.views_section(network, images, why, say)),
        (
            "filters",
            "first-layer filters",
            lambda: filters.filters_section(network, without_network),
        ),
        (
            "neighbours",
            "nearest neighbours",
            lambda: neighbours.neighbours_section(files, network, images, why, say),
        ),
    )
    return [_built(*part) for part in parts]


def _built(name: str, title: str, build: Callable[[], Section]) -> Section:
    """Build a section; if that fails, return one with the line that says why."""
    try:
        return build()
    except FastrotError as error:
        line = f"{title}: {str(error).splitlines()[0]}"
        return Section(name, title.capitalize(), missing=[line])
