"""Step times of real runs of ``fastrot train``: one run, independent copies, or several ranks."""

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
_WARM_UP = 5  # steps that are not counted: allocation, DDP's buckets, start of the other copies
_END_SECONDS = 60.0  # time to write a checkpoint


class TrainerError(FastrotError):
    """A trainer failed or took too long."""


@dataclass(frozen=True)
class Steps:
    """Measured steps.

    Attributes:
        seconds: seconds of each step.
        foreign: share of the cores that others used meanwhile, in [0, 1].
    """

    seconds: Sequence[float]
    foreign: float


@dataclass(frozen=True)
class Trainers:
    """Trainers that run at the same time.

    Attributes:
        settings: settings of all trainers, ``section.key=value``; every step is logged.
        copies: number of independent runs.
        ranks: ranks per run.
    """

    settings: Sequence[str]
    copies: int = 1
    ranks: int = 1

    def run(self, scratch: Path, *, recipe: str, steps: int, deadline: float) -> Steps:
        """Train until each copy has taken ``steps`` steps while all others were training as well.

        Args:
            scratch: an empty folder.
            recipe: a YAML file or a shipped recipe.
            steps: steps of each copy after the warm-up of all.
            deadline: seconds for everything.

        Raises:
            TrainerError: a trainer ended on its own, or training took too long.
        """
        cores, began = os.sched_getaffinity(0), time.monotonic()
        before = busy_seconds(cores) - cpu_seconds(os.getpid())
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
            while min(map(len, self._ends(scratch))) <= steps:
                if time.monotonic() > began + deadline:
                    raise TrainerError(f"{steps} steps took longer than {deadline:g} s")
                for copy, process in enumerate(processes):
                    if process.poll() is not None:
                        raise TrainerError(
                            f"training ended with {process.returncode}: "
                            + _last_words(scratch / f"{copy}.log")
                        )
                time.sleep(_POLL_SECONDS)
            others = busy_seconds(cores) - cpu_seconds(os.getpid()) - before
            share = others / (len(cores) * (time.monotonic() - began))
            ends = self._ends(scratch)
            return Steps(
                [after - before for each in ends for before, after in pairwise(each)],
                foreign=min(max(share, 0.0), 1.0),
            )

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
        """Return when each copy ended its steps after the warm-up of all, in seconds since 1970."""
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


def _last_words(log: Path) -> str:
    words = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    return next((word for word in words if word.startswith("fastrot:")), words[-1])


def _end(processes: Sequence[Child]) -> None:
    """End the processes, first by a signal that the launcher of ranks forwards to its ranks."""
    signal_children(processes, signal.SIGTERM)
    end_children(processes, patience=_END_SECONDS)
