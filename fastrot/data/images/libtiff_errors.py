"""What libtiff complains about while Pillow decodes with it.

It writes to standard error and often goes on: a fax page with a damaged code gives other pixels
and no error. So what it says is caught, and kept from standard error; where Pillow's libtiff
cannot be found (in another system than Linux, or linked into Pillow) it goes on as it was.
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


_HANDLER = _Handler(_hear)  # kept: libtiff knows it by its address alone


@contextmanager
def libtiff_errors() -> Iterator[list[str]]:
    """Collect the names of the parts of libtiff that complain in this thread within the block."""
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
