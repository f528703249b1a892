"""Printing to a reader that may leave before the end, as in ``fastrot doctor | head -1``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Say = Callable[[str], None]
"""Shows one line to the user."""


@contextmanager
def to_a_reader() -> Iterator[None]:
    """Let what is printed to standard output inside end quietly when nobody reads it any more."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit:
        pass  # what rich raises in the same case, after the same precaution
