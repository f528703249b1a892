"""Timing of single runs of an operation whose inputs are in memory, not in a cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from fastrot.benchmarks.kernels.implementations import Implementation

_LEAST_COPY = 2**28  # bytes moved: a smaller copy would measure a GPU's cache and its launches
_SLEEP_CYCLES = 4_000_000  # about 2 ms: Python needs less to queue all launches of a run


class Clock:
    """Times runs on one device.

    On a GPU, events around the run are used. Before it, the L2 cache is flushed, and the device is
    kept busy until all launches of the run are queued. So Python's launch overhead does not count,
    as in a training step that is captured or whose launches run ahead.

    Args:
        device: device to measure on.
        flush: bytes that are read before each run; more than any cache holds.
    """

    def __init__(self, device: torch.device, *, flush: int) -> None:
        self._device = device
        self._flushed = torch.zeros(flush, dtype=torch.uint8, device=device)

    def seconds(self, implementation: Implementation) -> float:
        """Return the duration of one run in seconds, excluding ``begin``."""
        start = implementation.begin()
        self._flushed.max()  # read, not written: writing lines back would slow the run down
        if self._device.type != "cuda":
            began = time.perf_counter()
            implementation.run(start)
            return time.perf_counter() - began
        torch.cuda._sleep(_SLEEP_CYCLES)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        implementation.run(start)
        after.record()
        after.synchronize()
        milliseconds: float = before.elapsed_time(after)
        return milliseconds / 1e3


def copying(moved: int, device: torch.device) -> tuple[Implementation, int]:
    """Return a copy within memory that moves about this many bytes, half read and half written.

    Returns:
        The copy, and the bytes that it moves: on a GPU more than its cache holds.
    """
    half = max(moved, _LEAST_COPY if device.type == "cuda" else 2) // 2
    source = torch.zeros(half, dtype=torch.uint8, device=device)
    copy: Callable[[Any], torch.Tensor] = torch.empty_like(source).copy_
    return Implementation(lambda: source, copy), 2 * half
