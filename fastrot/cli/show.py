"""How a command ends: its report is printed, and its exit code returned to the shell."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import typer

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended


class Report(Protocol):
    """What a command found or did."""

    @property
    def exit_code(self) -> int:
        """Of the command."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        ...

    def show(self, console: Console) -> None:
        """Print it for people."""
        ...


def show(report: Report, as_json: bool) -> None:
    """Print a report for people or for programs, and leave with its exit code."""
    from rich.console import Console

    from fastrot.system.console import to_a_reader

    with to_a_reader():
        if as_json:
            import json

            typer.echo(json.dumps(report.to_json()))
        else:
            report.show(Console())
    raise typer.Exit(report.exit_code)


def leave(line: str, code: int) -> NoReturn:
    """Print a line to standard error, unless it is empty, and exit with this code."""
    if line:
        print(line, file=sys.stderr)
    sys.exit(code)
