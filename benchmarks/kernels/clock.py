"""How long one run of an operation takes whose inputs lie in memory, not in a cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from fastrot.benchmarks.kernels.implementations import Implementation

_LEAST_COPY = 2**28  # bytes moved: a copy of less would measure a GPU's cache and its launches
_SLEEP_CYCLES = 4_000_000  # about 2 ms: Python prepares all launches of a run in less


class Clock:
    """Times runs on one device.

    On a GPU by events around the run. Before it the second-level cache is filled anew, and the
    device is kept busy until all launches of the run are queued, so that what Python takes for
    them does not count, as it does not in a step that is captured or runs ahead.

    Args:
        device: where.
        flush: bytes that are read before each run; more than any cache holds.
    """

    def __init__(self, device: torch.device, *, flush: int) -> None:
        self._device = device
        self._flushed = torch.zeros(flush, dtype=torch.uint8, device=device)

    def seconds(self, implementation: Implementation) -> float:
        """Of one run; what it starts from is made before."""
        start = implementation.begin()
        self._flushed.max()  # read, not written: lines to be written back would cost the run
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
    """A copy within memory that moves about so many bytes, half of them read, half written.

    Returns:
        It, and the bytes that it really moves: on a GPU not so few that its cache holds them.
    """
    half = max(moved, _LEAST_COPY if device.type == "cuda" else 2) // 2
    source = torch.zeros(half, dtype=torch.uint8, device=device)
    copy: Callable[[Any], torch.Tensor] = torch.empty_like(source).copy_
    return Implementation(lambda: source, copy), 2 * half
