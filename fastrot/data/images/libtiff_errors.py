"""Collects the errors that libtiff reports while Pillow decodes with it.

libtiff prints to standard error and often continues: a fax page with a damaged code gives wrong
pixels and no error. Its messages are therefore caught and kept off standard error. Where Pillow's
libtiff cannot be found (outside Linux, or if linked into Pillow), its behaviour is unchanged.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
_heard = threading.local()


def _hear(module: bytes | None, _form: bytes | None, _arguments: int | None) -> None:
    _heard.by = [*getattr(_heard, "by", []), (module or b"libtiff").decode(errors="replace")]


_HANDLER = _Handler(_hear)  # keeps it alive: libtiff has only its address


@contextmanager
def libtiff_errors() -> Iterator[list[str]]:
    """Collect the names of libtiff modules that report errors in this thread within the block."""
    _listen()
    _heard.by = []
    found: list[str] = []
    try:
        yield found
    finally:
        found += _heard.by
        _heard.by = []


@cache
def _listen() -> None:
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split(maxsplit=5)[-1].strip() for line in maps if "/libtiff" in line}
        for path in paths:
            ctypes.CDLL(path).TIFFSetErrorHandler(_HANDLER)
    except (OSError, AttributeError):
        return
