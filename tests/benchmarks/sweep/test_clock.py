from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import fastrot.benchmarks.sweep.clock as clocks
from fastrot.benchmarks.sweep.clock import LoaderClock, StepClock
from fastrot.distributed.world import World
from fastrot.system.stop_request import StopRequest


class Steps:
    """A step and a loader of known lengths, which move the time on instead of taking it."""

    device = torch.device("cpu")

    def __init__(self, step: float, draw: float) -> None:
        self.step, self.draw, self.now = step, draw, 100.0

    def perf_counter(self) -> float:
        return self.now

    def __call__(self, batches: Any) -> None:
        self.now += self.step

    def __iter__(self) -> Any:
        while True:
            self.now += self.draw
            yield None


def test_steps_and_waits_add_up_to_the_time_that_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Steps(step=0.004, draw=0.002)
    monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter=slow.perf_counter))
    loader, stop = LoaderClock(cast(Any, slow)), StopRequest()
    clock = StepClock(cast(Any, slow), loader, World(), stop, warm_up=3, repeats=4, seconds=0.05)
    began, calls = 0.0, 0
    for batch in loader:
        clock([batch])
        calls += 1
        if calls == 3:
            began = slow.now
        if stop:
            break
    repeats = clock.repeats()
    # A repeat of 0.05 s is over with the ninth step of 6 ms.
    assert [len(repeat.steps) for repeat in repeats] == [9] * 4 and calls == 3 + 4 * 9
    for repeat in repeats:
        assert repeat.steps == pytest.approx([0.006] * 9)
        assert repeat.waited == pytest.approx(0.002 * 9)
    assert sum(sum(repeat.steps) for repeat in repeats) == pytest.approx(slow.now - began)
    assert loader.first == pytest.approx(0.002)
