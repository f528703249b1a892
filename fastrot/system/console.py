"""Printing that no terminal and no reader can end with a traceback."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Say = Callable[[str], None]
"""Shows one line to the user."""


def print_anything() -> None:
    """Let standard output escape what its encoding lacks, as standard error does.

    A terminal in Latin-1, and a file name in no encoding at all, would end in an error.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def to_a_reader() -> Iterator[None]:
    """Let what is printed to standard output inside end quietly when nobody reads it any more.

    ``fastrot doctor | head -1`` is such a reader.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit:
        pass  # what rich raises in the same case, after the same precaution
