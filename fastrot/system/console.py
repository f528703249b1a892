"""Printing that survives every terminal and reader without a traceback."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], None]
"""A function that shows one line to the user."""


def print_anything() -> None:
    """Make standard output escape characters that its encoding lacks, as standard error does.

    Otherwise a terminal in Latin-1, or a file name in no valid encoding, would raise an error.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def to_a_reader() -> Iterator[None]:
    """End the block quietly if nobody reads its output any more: ``fastrot doctor | head -1``."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit, which would print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit:
        pass  # rich raises this in the same case, after the same precaution


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are, however long."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, in the plural if needed: ``1 epoch``, ``2,000 steps``."""
    text = f"{number:,}" if isinstance(number, int) else f"{number:.4g}"
    return f"{text} {noun}" + ("" if number == 1 else "s")
