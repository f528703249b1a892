"""Best speed of this machine, measured in the same run as the results compared with it."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastrot.errors import UsageError

_ROUNDS = 5


@dataclass(frozen=True)
class MachineSpeed:
    """Two speeds that no kernel can exceed for long.

    Attributes:
        peak: FLOP/s of a large matrix product in the precision of the activations.
        bandwidth: bytes/s of a large copy, counting both reads and writes.
    """

    peak: float
    bandwidth: float

    def to_json(self) -> dict[str, Any]:
        """Return the speeds in TFLOP/s and GB/s."""
        return {
            "tflops": float(f"{self.peak / 1e12:.5g}"),
            "gb_per_s": float(f"{self.bandwidth / 1e9:.5g}"),
        }


def usable_device(name: str) -> torch.device:
    """Return the device of this name; ``auto`` means a GPU if there is one.

    Raises:
        UsageError: the name is unknown, or torch can use no GPU here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device=cuda: there is no GPU that torch can use here; see doctor")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device={name} must be auto, cpu or cuda")
    return torch.device(name)


def measure_speed(device: torch.device, dtype: torch.dtype) -> MachineSpeed:
    """Measure a product of square matrices and a copy; return the best of a few rounds.

    On a CPU, whose caches hold small layers, a step can exceed a bound made of these speeds.

    Args:
        device: device to measure: a GPU multiplies 8192 x 8192 and copies 1 GiB, a CPU less.
        dtype: dtype of the matrices.
    """
    side, size = (8192, 1 << 30) if device.type == "cuda" else (1024, 1 << 26)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    multiplied = _best(lambda: torch.mm(a, b, out=product), device)
    copied = _best(lambda: target.copy_(source), device)
    return MachineSpeed(2 * side**3 / multiplied, 2 * size / copied)


def _best(work: Callable[[], object], device: torch.device) -> float:
    for _ in range(3):
        work()
    count = 10 if device.type == "cuda" else 3
    rounds = (durations(work, count, device) for _ in range(_ROUNDS))
    return min(statistics.fmean(each) for each in rounds)


def durations(work: Callable[[], object], count: int, device: torch.device) -> list[float]:
    """Return the seconds taken by each of ``count`` back-to-back repetitions.

    On a GPU, times are those between events of its stream, so they exclude waiting on the host.
    """
    if device.type != "cuda":
        times = [time.perf_counter()]
        for _ in range(count):
            work()
            times.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(times)]
    torch.cuda.synchronize(device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(events)]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this fraction of all values does not exceed.

    Example:
        >>> percentile([4.0, 1.0, 3.0, 2.0], 0.5)
        2.0
    """
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
