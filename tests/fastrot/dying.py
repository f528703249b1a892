"""Kills a process instead of one of its calls that change a file."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any


def die_at(call: int, names: Sequence[str]) -> None:
    """Kill this process instead of its ``call``-th call of one of these functions of ``os``."""
    count = 0

    def counted(real: Any) -> Any:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return wrapper

    for name in names:
        setattr(os, name, counted(getattr(os, name)))
