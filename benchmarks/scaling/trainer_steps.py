"""Step times of real runs of ``fastrot train``: one run, independent copies, or several ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from fastrot.benchmarks.common.process_tree import busy_seconds, cpu_seconds
from fastrot.benchmarks.common.trainers import Lines, train_until

_WARM_UP = 5  # steps that are not counted: allocation, DDP's buckets, start of the other copies
_END_SECONDS = 60.0  # time to write a checkpoint


@dataclass(frozen=True)
class Steps:
    """Measured steps."""

    seconds: Sequence[float]  # time of each step, in seconds
    foreign: float  # fraction of the cores that others used meanwhile, in [0, 1]


@dataclass(frozen=True)
class Trainers:
    """Trainers that run at the same time."""

    settings: Sequence[str]  # settings of all trainers, ``section.key=value``; every step is logged
    copies: int = 1  # number of independent runs
    ranks: int = 1  # ranks per run

    def run(self, scratch: Path, *, recipe: str, steps: int, deadline: float) -> Steps:
        """Train until each copy has taken ``steps`` steps while all others were training as well.

        Args:
            scratch: an empty folder.
            recipe: a YAML file or a shipped recipe.
            steps: steps of each copy after the warm-up of all.
            deadline: time limit for everything, in seconds.

        Raises:
            TrainerError: a trainer exited on its own, or training took too long.
        """
        settings = [
            *self.settings, "train.epochs=1000000",
            "train.log_seconds=0.000001", "train.checkpoint_minutes=100000",
            "sinks.tensorboard=false",
        ]  # fmt: skip
        arguments = ["-c", recipe, "--loader", "synthetic", "--gpus", str(self.ranks)]
        arguments += [word for each in settings for word in ("--set", each)]
        cores, began = os.sched_getaffinity(0), time.monotonic()
        before = busy_seconds(cores) - cpu_seconds(os.getpid())
        found = train_until(
            lambda logs: min(map(len, _ends(logs))) > steps,
            {scratch / str(copy): arguments for copy in range(self.copies)},
            deadline=deadline,
            environment={"OMP_NUM_THREADS": "1"},
            patience=_END_SECONDS,
        )
        others = busy_seconds(cores) - cpu_seconds(os.getpid()) - before
        share = others / (len(cores) * (time.monotonic() - began))
        seconds = [after - before for each in _ends(found) for before, after in pairwise(each)]
        return Steps(seconds, foreign=min(max(share, 0.0), 1.0))


def _ends(logs: Sequence[Lines]) -> list[list[float]]:
    """Return when each copy ended its steps after the warm-up of all, in seconds since 1970."""
    ends = [[line["time"] for line in each if line["step"] >= _WARM_UP] for each in logs]
    if not all(ends):
        return [[] for _ in ends]
    first, last = max(each[0] for each in ends), min(each[-1] for each in ends)
    return [[moment for moment in each if first <= moment <= last] for each in ends]
