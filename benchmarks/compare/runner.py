"""Contenders in processes of their own: start them, give each its turns, end them.

A contender that is not installed, refuses its job, dies or does not answer is left out with its
reason; the others go on.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
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

_START_SECONDS = 300.0
_TURN_SECONDS = 300.0
_END_SECONDS = 10.0
_SAME_LEVELS = 4.0


class ContenderError(FastrotError):
    """A contender is left out, and why."""


@dataclass(frozen=True)
class Entry:
    """One contender.

    Attributes:
        name: in the report.
        module: Python module with its ``open_stream``.
        job: what that function gets, plain values.
        imports: other modules to import before the clock of the first delivery starts.
    """

    name: str
    module: str
    job: Mapping[str, Any]
    imports: tuple[str, ...] = ()


@dataclass
class Measured:
    """What was measured of one contender: one answer a fresh process, one a turn."""

    starts: list[dict[str, Any]] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)

    def rates(self) -> list[float]:
        """Images/s of each round."""
        return [turn["images"] / turn["seconds"] for turn in self.turns]


@dataclass
class Contest:
    """The outcome: what was measured, in the order of the entries, and who was left out."""

    measured: dict[str, Measured] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def contest_cores(workers: int | None) -> list[int]:
    """Numbers of the cores that the contenders may use; None: all usable ones.

    Raises:
        UsageError: there are not so many.
    """
    usable = usable_cores()
    if workers is not None and not 1 <= workers <= usable:
        raise UsageError(f"--workers={workers} must be from 1 to {usable}, the usable cores")
    return sorted(os.sched_getaffinity(0))[: workers or usable]


def hold(
    entries: Sequence[Entry],
    *,
    cores: Sequence[int],
    starts: int,
    rounds: int,
    seconds: float,
    countdown: Countdown,
) -> Contest:
    """Measure all contenders. The first one is the subject: without it there is no contest.

    Args:
        entries: the contenders.
        cores: numbers of the processor cores that each of them may use.
        starts: fresh processes of each, for the time to the first delivery.
        rounds: turns of each.
        seconds: least length of a turn.
        countdown: told of every step; there are ``len(entries) * (starts + rounds)``.

    Raises:
        ContenderError: the subject failed; with the exit code of its error.
    """
    contest = Contest()
    with ExitStack() as stack:
        running: dict[str, _Process] = {}
        for entry in entries:
            try:
                measured = Measured()
                for number in range(starts):
                    process = _Process(entry, cores)
                    stack.enter_context(process)
                    measured.starts.append(process.start())
                    first = measured.starts[-1]["first_seconds"]
                    countdown.step(f"{entry.name}: first delivery after {first:.2f} s")
                    if number < starts - 1:
                        process.close()
                _check_levels(entry, measured, contest.measured)
                contest.measured[entry.name], running[entry.name] = measured, process
            except ContenderError as error:
                _leave_out(entry.name, error, entries, contest, countdown)
                countdown.skip(starts + rounds - len(measured.starts))
        for turn in range(rounds):
            for name in rotated(list(running), turn):
                measured = contest.measured[name]
                try:
                    measured.turns.append(running[name].turn(seconds))
                    countdown.step(f"round {turn + 1} {name}: {measured.rates()[-1]:,.0f} images/s")
                except ContenderError as error:
                    del contest.measured[name], running[name]
                    _leave_out(name, error, entries, contest, countdown)
                    countdown.skip(rounds - turn)
    return contest


def _leave_out(
    name: str,
    error: ContenderError,
    entries: Sequence[Entry],
    contest: Contest,
    countdown: Countdown,
) -> None:
    if name == entries[0].name:
        raise error
    contest.left_out[name] = str(error).removeprefix(f"{name}: ")
    countdown.message(f"left out: {error}")


def _check_levels(entry: Entry, measured: Measured, others: Mapping[str, Measured]) -> None:
    """Check that the first batch shows what the subject's shows: same samples, same boxes.

    The resizes differ a little; another crop changes the mean of an image by tens of levels.
    """
    ours = next((m.starts[-1]["levels"] for m in others.values()), None)
    theirs = measured.starts[-1]["levels"]
    if ours is None or theirs is None:
        return
    apart = [abs(a - b) for a, b in zip(ours, theirs, strict=False)]
    worst = max(apart) if len(ours) == len(theirs) else float("inf")
    if worst > _SAME_LEVELS:
        raise ContenderError(
            f"{entry.name}: an image of its first batch differs by {worst:.0f} levels on "
            "average: it does not do the same work"
        )


class _Process:
    """One contender's process; ends with the block, at the latest."""

    def __init__(self, entry: Entry, cores: Sequence[int]) -> None:
        self._entry, self._cores = entry, list(cores)
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        self._closed = False
        self._started = time.perf_counter()
        # A session of its own: Ctrl-C reaches only this process, which ends it and its workers.
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "fastrot.benchmarks.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._received = b""

    def start(self) -> dict[str, Any]:
        """Hand over the job; the answer, with ``process_seconds`` since the process began."""
        entry = self._entry
        self._send(
            {
                "imports": [*entry.imports, entry.module],
                "job": dict(entry.job),
                "cores": self._cores,
            }
        )
        answer = self._answer(_START_SECONDS)
        return {**answer, "process_seconds": time.perf_counter() - self._started}

    def turn(self, seconds: float) -> dict[str, Any]:
        """Let it work for so long; the answer."""
        self._send({"seconds": seconds})
        return self._answer(_TURN_SECONDS + seconds)

    def close(self, *, patience: float = _END_SECONDS) -> None:
        """End the process, after so many seconds by force, and its workers; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
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
        with suppress(BrokenPipeError):  # it died: there will be no answer, which says why
            self._process.stdin.write(f"{json.dumps(request)}\n".encode())
            self._process.stdin.flush()

    def _answer(self, deadline: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        end = time.monotonic() + deadline
        while b"\n" not in self._received:
            if not self._selector.select(max(0.0, end - time.monotonic())):
                raise ContenderError(f"{self._entry.name}: no answer for {deadline:.0f} s")
            piece = os.read(self._process.stdout.fileno(), 2**16)
            if not piece:
                raise ContenderError(f"{self._entry.name}: {self._last_words()}")
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            error = ContenderError(f"{self._entry.name}: {answer['failed']}")
            error.exit_code = answer["exit_code"]
            raise error
        return answer

    def _last_words(self) -> str:
        code = self._process.wait(_END_SECONDS)
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        how = f"died with {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"{how}: {lines[-1]}" if lines else how
