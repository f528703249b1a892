"""Real runs of ``fastrot train`` that a benchmark starts, reads and ends."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fastrot.errors import FastrotError
from fastrot.system.jsonl import read_json_lines
from fastrot.system.processes import Child, end_children, signal_children, start_child

_POLL_SECONDS = 0.1

Lines = list[dict[str, Any]]
"""The training lines of a run's ``metrics.jsonl``."""


class TrainerError(FastrotError):
    """A trainer exited too early, with its exit code, or took too long."""


def train_until(
    enough: Callable[[list[Lines]], bool],
    runs: Mapping[Path, Sequence[str]],
    *,
    deadline: float,
    environment: Mapping[str, str] | None = None,
    patience: float = 0.0,
) -> list[Lines]:
    """Train side by side until the logs are enough; then stop all trainers.

    Args:
        enough: returns whether the log lines of all runs, in order, are enough.
        runs: arguments of ``fastrot train`` by run folder; the output goes to a ``.log`` beside it.
        deadline: time limit for everything, in seconds.
        environment: variables added to those of this process.
        patience: time for the trainers to exit on their own, in seconds, so that a launcher can
            stop its ranks; 0: they are killed.

    Raises:
        TrainerError: a trainer exited on its own, or the deadline passed.
    """
    end = time.monotonic() + deadline
    with ExitStack() as stack:
        trainers: dict[Path, Child] = {}
        stack.callback(_end, trainers, patience)
        for out, arguments in runs.items():
            command = [sys.executable, "-m", "fastrot", "train", *arguments, "--out", str(out)]
            output = stack.enter_context(_log(out).open("wb"))
            trainers[out] = start_child(command, environment=environment, output=output)
        while True:
            codes = {out: trainer.poll() for out, trainer in trainers.items()}
            lines = [_lines(out) for out in runs]
            if enough(lines):
                return lines
            for out, code in codes.items():
                if code is not None:
                    error = TrainerError(f"training ended with {code}: {_last_words(out)}")
                    error.exit_code = max(code, 0) or error.exit_code
                    raise error
                if time.monotonic() > end:
                    raise TrainerError(f"too few steps in {deadline:g} s: {_last_words(out)}")
            time.sleep(_POLL_SECONDS)


def _lines(out: Path) -> Lines:
    path = out / "metrics.jsonl"
    lines = read_json_lines(path) if path.is_file() else []
    return [dict(line) for line in lines if line.get("kind") == "train"]


def _last_words(out: Path) -> str:
    words = _log(out).read_text(errors="replace").strip().splitlines() or ["no output"]
    return next((word for word in words if word.startswith("fastrot:")), words[-1])


def _log(out: Path) -> Path:
    return out.with_suffix(".log")


def _end(trainers: Mapping[Path, Child], patience: float) -> None:
    if patience:
        signal_children(trainers.values(), signal.SIGTERM)
    end_children(trainers.values(), patience=patience)
