"""How a command ends: it saves and prints its report and returns an exit code to the shell."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

Request = TypeVar("Request")

INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended


class Report(Protocol):
    """What a command found or did."""

    @property
    def exit_code(self) -> int:
        """Return the exit code of the command."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        ...

    def show(self, console: Console) -> None:
        """Print the report."""
        ...


class SavedReport(Report, Protocol):
    """What a benchmark found, which can also be saved to files."""

    def save(self, json: Path | None, append: Path | None) -> None:
        """Write one JSON object to ``json`` and append records to ``append``; skip what is None."""
        ...


def show(report: Report, as_json: bool) -> None:
    """Print a report as text or as JSON, and exit with its code."""
    from rich.console import Console

    from fastrot.system.console import to_a_reader

    with to_a_reader():
        if as_json:
            import json

            typer.echo(json.dumps(report.to_json()))
        else:
            report.show(Console())
    raise typer.Exit(report.exit_code)


def run_benchmark(
    run: Callable[[Request], SavedReport],
    request: Callable[..., Request],
    options: dict[str, Any],
    **parsed: Any,
) -> None:
    """Run a benchmark, save its report where asked to, print it, and exit with its code.

    Args:
        run: the benchmark.
        request: what to measure; its fields have the names of the command's parameters.
        options: the parameters of the command, with ``json`` and ``append``: the file for one JSON
            object, and the results file to append records to; None: not written.
        parsed: fields that differ from the text of their option.

    Raises:
        UsageError: one of the files cannot be written; this is checked before the run.
        typer.Exit: always, at the end.
    """
    from fastrot.benchmarks.common.harness import check_outputs

    json, append = options.pop("json"), options.pop("append", None)
    check_outputs(json, append)
    report = run(fill(request, options, **parsed))
    report.save(json, append)
    show(report, as_json=False)


def fill(request: Callable[..., Request], options: dict[str, Any], **parsed: Any) -> Request:
    """Return a request whose fields have the names of a command's parameters.

    Args:
        request: the type of the request.
        options: the parameters of the command; ``overrides`` may be None.
        parsed: fields that differ from their parameter, or that have none.
    """
    if "overrides" in options:
        parsed["overrides"] = tuple(options["overrides"] or ())
    return request(**options | parsed)


def leave(line: str, code: int) -> NoReturn:
    """Print a line to standard error, unless it is empty, and exit with this code."""
    if line:
        print(line, file=sys.stderr)
    sys.exit(code)
