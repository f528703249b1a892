from __future__ import annotations

import time
from typing import Any, cast

import pytest
import torch

from fastrot.benchmarks.sweep.clock import LoaderClock, StepClock
from fastrot.distributed.world import World
from fastrot.system.stop_request import StopRequest


class Steps:
    """A step of known length, and a loader of known slowness."""

    device = torch.device("cpu")

    def __init__(self, step: float, draw: float) -> None:
        self.step, self.draw = step, draw

    def __call__(self, batches: Any, epoch: int) -> None:
        time.sleep(self.step)

    def __iter__(self) -> Any:
        while True:
            time.sleep(self.draw)
            yield None


def test_steps_and_waits_add_up_to_the_time_that_passed() -> None:
    slow = Steps(step=0.004, draw=0.002)
    loader, stop = LoaderClock(cast(Any, slow)), StopRequest()
    clock = StepClock(cast(Any, slow), loader, World(), stop, warm_up=3, repeats=4, seconds=0.05)
    began, calls = 0.0, 0
    for batch in loader:
        clock([batch], 0)
        calls += 1
        if calls == 3:
            began = time.perf_counter()
        if stop:
            break
    elapsed = time.perf_counter() - began
    repeats = clock.repeats()
    steps = [seconds for repeat in repeats for seconds in repeat.steps]
    assert len(repeats) == 4 and len(steps) == calls - 3
    assert sum(steps) == pytest.approx(elapsed, abs=0.003)
    assert min(steps) >= 0.006
    assert all(sum(repeat.steps) >= 0.05 for repeat in repeats)
    assert sum(repeat.waited for repeat in repeats) >= 0.002 * len(steps)
    assert sum(repeat.waited for repeat in repeats) <= sum(steps) - 0.004 * len(steps)
    assert loader.first is not None and loader.first >= 0.002
