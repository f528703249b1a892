"""Real runs of ``fastrot train``, alone, side by side or as ranks of one: seconds of each step."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from fastrot.benchmarks.common.process_tree import busy_seconds, cpu_seconds
from fastrot.errors import FastrotError
from fastrot.system.jsonl import read_json_lines
from fastrot.system.processes import Child, end_children, signal_children, start_child

_POLL_SECONDS = 0.1
_WARM_UP = 5  # steps that are not counted: allocation, DDP's buckets, the neighbour's start
_SAMPLE_SECONDS = 0.4
FOREIGN = 0.1
"""Share of the cores that others may use during a step that counts; ticks blur less than that."""
_END_SECONDS = 60.0  # a checkpoint is written


class TrainerError(FastrotError):
    """A trainer failed, or left too few steps."""


@dataclass(frozen=True)
class Steps:
    """What was measured.

    Attributes:
        seconds: of each quiet step: others used ``FOREIGN`` of the cores or less; of all steps
            where none was quiet.
        quiet: how many there were.
        foreign: share of the cores that others used during all of them, in [0, 1].
    """

    seconds: Sequence[float]
    quiet: int
    foreign: float


@dataclass(frozen=True)
class Trainers:
    """Trainers that run at the same time.

    Attributes:
        settings: of all, ``section.key=value``; a step is logged by itself.
        copies: runs that know nothing of each other.
        ranks: of each.
    """

    settings: Sequence[str]
    copies: int = 1
    ranks: int = 1

    def run(self, scratch: Path, *, recipe: str, steps: int, deadline: float) -> Steps:
        """Train until each copy has taken so many steps while all the others trained, too.

        Args:
            scratch: an empty folder.
            recipe: a YAML file or a shipped recipe.
            steps: of each copy, once all are warm.
            deadline: seconds for everything.

        Raises:
            TrainerError: a trainer ended by itself, or it took too long.
        """
        load = Load()
        with ExitStack() as stack:
            processes: list[Child] = []
            stack.callback(_end, processes)
            for copy in range(self.copies):
                log = stack.enter_context((scratch / f"{copy}.log").open("wb"))
                processes.append(
                    start_child(
                        self._command(scratch / str(copy), recipe),
                        environment={"OMP_NUM_THREADS": "1"},
                        output=log,
                    )
                )
            end = time.monotonic() + deadline
            while min(map(len, self._ends(scratch))) <= steps:
                if time.monotonic() > end:
                    raise TrainerError(f"{steps} steps took longer than {deadline:g} s")
                for copy, process in enumerate(processes):
                    if process.poll() is not None:
                        raise TrainerError(
                            f"training ended with {process.returncode}: "
                            + _last_words(scratch / f"{copy}.log")
                        )
                load.sample()
                time.sleep(_POLL_SECONDS)
            load.sample(again=True)
            return _counted(self._ends(scratch), load)

    def _command(self, out: Path, recipe: str) -> list[str]:
        settings = [
            *self.settings, "train.epochs=1000000",
            "train.log_seconds=0.000001", "train.checkpoint_minutes=100000",
            "sinks.tensorboard=false",
        ]  # fmt: skip
        return [
            sys.executable, "-m", "fastrot", "train", "-c", recipe, "--loader", "synthetic",
            "--gpus", str(self.ranks), "--out", str(out),
            *(word for each in settings for word in ("--set", each)),
        ]  # fmt: skip

    def _ends(self, scratch: Path) -> list[list[float]]:
        """When each copy ended its steps, while all were warm; seconds since 1970."""
        ends = [
            [
                line["time"]
                for line in read_json_lines(scratch / str(copy) / "metrics.jsonl")
                if line.get("kind") == "train" and line["step"] >= _WARM_UP
            ]
            for copy in range(self.copies)
        ]
        if not all(ends):
            return [[] for _ in ends]
        first, last = max(each[0] for each in ends), min(each[-1] for each in ends)
        return [[moment for moment in each if first <= moment <= last] for each in ends]


def _counted(ends: Sequence[Sequence[float]], load: Load) -> Steps:
    steps = [step for each in ends for step in pairwise(each)]
    quiet = [step for step in steps if load.foreign(*step) <= FOREIGN]
    return Steps(
        [after - before for before, after in quiet or steps],
        quiet=len(quiet),
        foreign=load.foreign(min(each[0] for each in ends), max(each[-1] for each in ends)),
    )


def _last_words(log: Path) -> str:
    words = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    return next((word for word in words if word.startswith("fastrot:")), words[-1])


class Load:
    """What others do on the cores of this process, sampled while trainers run.

    Attributes:
        cores: that count.
        samples: seconds since 1970; of processor time, all that was used; what is ours of it.
    """

    def __init__(self) -> None:
        self.cores = os.sched_getaffinity(0)
        self.samples: list[tuple[float, float, float]] = []

    def sample(self, *, again: bool = False) -> None:
        """Take one more, unless the last one is fresh (and it is not to be taken ``again``).

        Ours is what this process and its descendants do.
        """
        now = time.time()
        if again or not self.samples or now - self.samples[-1][0] >= _SAMPLE_SECONDS:
            self.samples.append((now, busy_seconds(self.cores), cpu_seconds(os.getpid())))

    def foreign(self, begin: float, end: float) -> float:
        """Share of the cores that others used between two times, widened to the samples."""
        before = [sample for sample in self.samples if sample[0] <= begin]
        after = [sample for sample in self.samples if sample[0] >= end]
        if not before or not after or after[0][0] == before[-1][0]:
            return 1.0  # unknown
        (t0, busy0, ours0), (t1, busy1, ours1) = before[-1], after[0]
        others = (busy1 - busy0) - (ours1 - ours0)
        return max(others, 0.0) / (len(self.cores) * (t1 - t0))


def wait_for_quiet(deadline: float, *, seconds: float = 4.0) -> bool:
    """Do nothing until others have left the cores alone for a while.

    Args:
        deadline: of the monotonic clock; then it returns in any case.
        seconds: for which they must have.

    Returns:
        Whether they have.
    """
    load, since = Load(), time.time()
    while time.monotonic() < deadline:
        load.sample()
        now = load.samples[-1][0]
        if load.foreign(now - 2 * _SAMPLE_SECONDS, now) > FOREIGN:
            since = now
        if now - since >= seconds:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _end(processes: Sequence[Child]) -> None:
    """By a signal first, which the launcher of ranks hands on to them."""
    signal_children(processes, signal.SIGTERM)
    end_children(processes, patience=_END_SECONDS)
