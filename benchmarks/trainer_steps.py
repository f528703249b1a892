"""Real runs of ``fastrot train``, alone, side by side or as ranks of one: seconds of each step."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from fastrot.errors import FastrotError
from fastrot.runlog import read_json_lines

_POLL_SECONDS = 0.1
_WARM_UP = 5  # steps that are not counted: allocation, DDP's buckets, the neighbour's start
_END_SECONDS = 60.0  # torchrun waits for its ranks


class TrainerError(FastrotError):
    """A trainer failed, or left too few steps."""


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

    def run(self, scratch: Path, *, recipe: str, steps: int, deadline: float) -> list[float]:
        """Train so many steps, and return the seconds of those that all copies took together.

        Args:
            scratch: an empty folder.
            recipe: a YAML file or a shipped recipe.
            steps: of each copy.
            deadline: seconds for everything.

        Raises:
            TrainerError: a trainer failed, took too long, or none of the steps can be counted.
        """
        with ExitStack() as stack:
            processes: list[subprocess.Popen[bytes]] = []
            stack.callback(_end, processes)
            for copy in range(self.copies):
                log = stack.enter_context((scratch / f"{copy}.log").open("w"))
                processes.append(
                    subprocess.Popen(
                        self._command(scratch / str(copy), recipe, steps),
                        stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
                                          "NCCL_SOCKET_IFNAME": "lo"},
                    )
                )  # fmt: skip
            end = time.monotonic() + deadline
            while any(process.poll() is None for process in processes):
                if any(process.returncode for process in processes):
                    break
                if time.monotonic() > end:
                    raise TrainerError(f"training did not end within {deadline:g} s")
                time.sleep(_POLL_SECONDS)
            for copy, process in enumerate(processes):
                if process.returncode:
                    words = (scratch / f"{copy}.log").read_text(errors="replace").splitlines()
                    said = next((w for w in words if w.startswith("fastrot:")), words[-1:])
                    raise TrainerError(f"training ended with {process.returncode}: {said}")
        return self._steps(scratch)

    def _command(self, out: Path, recipe: str, steps: int) -> list[str]:
        launcher = [sys.executable]
        if self.ranks > 1:
            launcher += [
                *("-m", "torch.distributed.run", "--standalone"),
                f"--nproc-per-node={self.ranks}",
            ]
        settings = [
            *self.settings, f"train.max_steps={steps}", "train.epochs=1000000",
            "train.log_seconds=0.000001", "train.checkpoint_minutes=100000",
            "sinks.tensorboard=false",
        ]  # fmt: skip
        return [
            *launcher, "-m", "fastrot", "train", "-c", recipe, "--loader", "synthetic",
            "--out", str(out), *(word for each in settings for word in ("--set", each)),
        ]  # fmt: skip

    def _steps(self, scratch: Path) -> list[float]:
        ends = [
            [
                line["time"]
                for line in read_json_lines(scratch / str(copy) / "metrics.jsonl")
                if line.get("kind") == "train" and line["step"] >= _WARM_UP
            ]
            for copy in range(self.copies)
        ]
        first, last = max(each[0] for each in ends), min(each[-1] for each in ends)
        counted = [
            after - before
            for each in ends
            for before, after in pairwise(each)
            if before >= first and after <= last
        ]
        if not counted:
            raise TrainerError("the runs took no step at the same time; let them take more steps")
        return counted


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """In order, so that torchrun takes its ranks with it."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
