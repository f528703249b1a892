"""Runs competitors in separate processes: starts them, measures each in every round, ends them.

A competitor that is not installed, refuses its job, dies or does not answer is left out, with the
reason; the others continue.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from fastrot.benchmarks.common.harness import Countdown, rotated
from fastrot.errors import FastrotError, UsageError
from fastrot.system.machine import usable_cores
from fastrot.system.processes import end_children, start_child

_START_SECONDS = 300.0
_ROUND_SECONDS = 300.0
_END_SECONDS = 10.0
_SAME_LEVELS = 4.0


class CompetitorError(FastrotError):
    """A competitor failed and is left out; the message says why."""


@dataclass(frozen=True)
class Competitor:
    """A competitor in the benchmark: a baseline, or part of fastrot."""

    name: str  # name in the report
    module: str  # Python module with its ``open_stream``
    job: Mapping[str, Any]  # argument of that function, plain values
    imports: tuple[str, ...] = ()
    """Other modules to import before the time to the first delivery is measured."""


@dataclass
class Measurements:
    """Measurements of one competitor: one answer per fresh process, and one per round."""

    starts: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def rates(self) -> list[float]:
        """Return the images/s of each round."""
        return [each["images"] / each["seconds"] for each in self.rounds]


@dataclass
class CompetitorResults:
    """All measurements, in the order of the competitors, and those left out with the reasons."""

    measured: dict[str, Measurements] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def competitor_cores(workers: int | None) -> list[int]:
    """Return the indices of the cores that the competitors may use; None means all usable cores.

    Raises:
        UsageError: there are fewer usable cores than workers.
    """
    usable = usable_cores()
    if workers is not None and not 1 <= workers <= usable:
        raise UsageError(f"--workers={workers} must be from 1 to {usable}, the usable cores")
    return sorted(os.sched_getaffinity(0))[: workers or usable]


def run_comparison(
    competitors: Sequence[Competitor],
    *,
    cores: Sequence[int],
    starts: int,
    rounds: int,
    seconds: float,
    countdown: Countdown,
) -> CompetitorResults:
    """Measure all competitors; the first is the subject, without which nothing can be compared.

    Args:
        competitors: competitors to measure.
        cores: indices of the processor cores that each of them may use.
        starts: fresh processes per competitor, to measure the time to the first delivery.
        rounds: number of rounds.
        seconds: minimum length of one competitor's measurement in a round.
        countdown: reports every step; there are ``len(competitors) * (starts + rounds)``.

    Raises:
        CompetitorError: the subject failed; the exit code is that of its error.
    """
    results = CompetitorResults()
    with ExitStack() as stack:
        running: dict[str, _Process] = {}
        for competitor in competitors:
            try:
                measured = Measurements()
                for number in range(starts):
                    process = _Process(competitor, cores)
                    stack.enter_context(process)
                    measured.starts.append(process.start())
                    first = measured.starts[-1]["first_seconds"]
                    countdown.step(f"{competitor.name}: first delivery after {first:.2f} s")
                    if number < starts - 1:
                        process.close()
                _check_levels(competitor, measured, results.measured)
                results.measured[competitor.name], running[competitor.name] = measured, process
            except CompetitorError as error:
                _leave_out(competitor.name, error, competitors, results, countdown)
                countdown.skip(starts + rounds - len(measured.starts))
        for number in range(rounds):
            for name in rotated(list(running), number):
                measured = results.measured[name]
                try:
                    measured.rounds.append(running[name].run(seconds))
                    countdown.step(
                        f"round {number + 1} {name}: {measured.rates()[-1]:,.0f} images/s"
                    )
                except CompetitorError as error:
                    del results.measured[name], running[name]
                    _leave_out(name, error, competitors, results, countdown)
                    countdown.skip(rounds - number)
    return results


def _leave_out(
    name: str,
    error: CompetitorError,
    competitors: Sequence[Competitor],
    results: CompetitorResults,
    countdown: Countdown,
) -> None:
    if name == competitors[0].name:
        raise error
    results.left_out[name] = str(error).removeprefix(f"{name}: ")
    countdown.message(f"left out: {error}")


def _check_levels(
    competitor: Competitor, measured: Measurements, others: Mapping[str, Measurements]
) -> None:
    """Check that the first batch shows the same samples and boxes as the subject's.

    Resizing differs slightly; a different crop changes the mean of an image by tens of levels.
    """
    ours = next((m.starts[-1]["levels"] for m in others.values()), None)
    theirs = measured.starts[-1]["levels"]
    if ours is None or theirs is None:
        return
    apart = [abs(a - b) for a, b in zip(ours, theirs, strict=False)]
    worst = max(apart) if len(ours) == len(theirs) else float("inf")
    if worst > _SAME_LEVELS:
        raise CompetitorError(
            f"{competitor.name}: an image of its first batch differs by {worst:.0f} levels on "
            "average: it does not do the same work"
        )


class _Process:
    """One competitor's process; it ends at the end of the ``with`` block at the latest."""

    def __init__(self, competitor: Competitor, cores: Sequence[int]) -> None:
        self._competitor, self._cores = competitor, list(cores)
        self._errors = tempfile.TemporaryFile()
        self._closed = False
        self._started = time.perf_counter()
        self._process = start_child(
            [sys.executable, "-W", "ignore", "-m", "fastrot.benchmarks.compare.worker"],
            output=self._errors,
            pipes=True,
        )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._received = b""

    def start(self) -> dict[str, Any]:
        """Send the job; return the answer and ``process_seconds``, the time since the start."""
        competitor = self._competitor
        self._send(
            {
                "imports": [*competitor.imports, competitor.module],
                "job": dict(competitor.job),
                "cores": self._cores,
            }
        )
        answer = self._answer(_START_SECONDS)
        return {**answer, "process_seconds": time.perf_counter() - self._started}

    def run(self, seconds: float) -> dict[str, Any]:
        """Let the competitor work this long; return its answer."""
        self._send({"seconds": seconds})
        return self._answer(_ROUND_SECONDS + seconds)

    def close(self, *, patience: float = _END_SECONDS) -> None:
        """End the process and its workers, by force after ``patience``; may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        end_children([self._process], patience=patience)
        self._errors.close()

    def __enter__(self) -> _Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(patience=_END_SECONDS if kind is None else 0.0)

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died: waiting for the answer reports why
            self._process.stdin.write(f"{json.dumps(request)}\n".encode())
            self._process.stdin.flush()

    def _answer(self, deadline: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        end = time.monotonic() + deadline
        while b"\n" not in self._received:
            if not self._selector.select(max(0.0, end - time.monotonic())):
                raise CompetitorError(f"{self._competitor.name}: no answer for {deadline:.0f} s")
            piece = os.read(self._process.stdout.fileno(), 2**16)
            if not piece:
                raise CompetitorError(f"{self._competitor.name}: {self._last_words()}")
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            error = CompetitorError(f"{self._competitor.name}: {answer['failed']}")
            error.exit_code = answer["exit_code"]
            raise error
        return answer

    def _last_words(self) -> str:
        code = self._process.wait(_END_SECONDS)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"died with {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"{how}: {lines[-1]}" if lines else how
