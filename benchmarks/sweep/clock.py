"""Timing of training steps from outside, so that they train as they would without a clock."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastrot.data.loader import Batch, Loader
from fastrot.distributed.world import World
from fastrot.system.stop_request import StopRequest
from fastrot.training.step import TrainStep


@dataclass(frozen=True)
class Repeat:
    """One measurement.

    Attributes:
        steps: time of each step, in seconds, from the end of the previous step to its own end.
        waited: seconds that the rank that waited longest spent waiting for the loader.
    """

    steps: Sequence[float]
    waited: float


class LoaderClock:
    """A loader that measures how long training waits for it.

    Attributes:
        waited: seconds spent in ``next`` so far.
        first: seconds from the start of the loader to its first batch; None: not yet.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self.waited = 0.0
        self.first: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        started = time.perf_counter()
        batches = iter(self._loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            now = time.perf_counter()
            self.waited += now - started
            if self.first is None:
                self.first = now - started
            yield batch
            started = time.perf_counter()


class StepClock:
    """A step that records when each call ended; that of the main rank finally requests a stop.

    On a GPU the ends are events of its stream, so the host does not wait for them.

    Args:
        step: the training step.
        loader: its clock gives the time spent waiting for data.
        world: the ranks; the main one decides when a repeat is over.
        stop: requested when all repeats are measured.
        warm_up: steps before the first repeat.
        repeats: number of repeats.
        seconds: length of each repeat.

    Attributes:
        last: the batches of the last step.
    """

    def __init__(
        self,
        step: TrainStep,
        loader: LoaderClock,
        world: World,
        stop: StopRequest,
        *,
        warm_up: int,
        repeats: int,
        seconds: float,
    ) -> None:
        self._step, self._loader, self._world, self._stop = step, loader, world, stop
        self._warm_up, self._repeats, self._seconds = warm_up, repeats, seconds
        self._on_gpu = step.device.type == "cuda"
        self._calls = 0
        self._ends: list[Any] = []
        self._waits: list[float] = []
        self._rounds: list[
            int
        ] = []  # the call that ends each repeat, counted from the warm-up's end
        self._round_began = 0.0
        self.last: Sequence[Batch] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def __call__(self, batches: Sequence[Batch]) -> None:
        """Train one step and record its end."""
        self._step(batches)
        self.last = batches
        self._calls += 1
        if self._calls < self._warm_up:
            return
        if self._calls == self._warm_up:
            if self._on_gpu:  # otherwise the first repeat would include queued warm-up steps
                torch.cuda.synchronize(self._step.device)
            self._round_began = time.perf_counter()
        self._ends.append(self._end())
        self._waits.append(self._loader.waited)
        now = time.perf_counter()
        if (
            self._calls > self._warm_up
            and now - self._round_began >= self._seconds
            and len(self._rounds) < self._repeats
        ):
            self._rounds.append(len(self._ends) - 1)
            self._round_began = now
            if len(self._rounds) == self._repeats and self._world.is_main:
                self._stop.signal_name = "the clock"

    def _end(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def repeats(self) -> list[Repeat]:
        """Return the measurements, once training has stopped; all ranks must call this together."""
        if self._on_gpu:
            torch.cuda.synchronize(self._step.device)
        ends = torch.tensor((self._rounds + [0] * self._repeats)[: self._repeats])
        spans = list(itertools.pairwise([0, *self._world.copy_from_main(ends).tolist()]))
        waits = [self._waits[last] - self._waits[first] for first, last in spans]
        most = self._world.max(torch.tensor(waits, dtype=torch.float64)).tolist()
        return [
            Repeat([self._between(i - 1, i) for i in range(first + 1, last + 1)], waited)
            for (first, last), waited in zip(spans, most, strict=True)
        ]

    def _between(self, before: int, after: int) -> float:
        if not self._on_gpu:
            return float(self._ends[after] - self._ends[before])
        return float(self._ends[before].elapsed_time(self._ends[after])) / 1e3
