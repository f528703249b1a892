"""Kills evaluations at calls that change a file, and looks what is left of all that was measured.

``python -m tests.fastrot.evaluation.kill_eval FOLDER EVERY REQUESTS...`` evaluates
FOLDER/weights.safetensors. For each of the named requests it takes a folder that has the results of
those before it, forks a start that is killed at its EVERY-th, 2 EVERY-th ... call, and then one
that is not. Prints a line of JSON each: what was lost by the kill, and whether the end is as
without one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the first custom operation imports: once here, not in every fork

from fastrot.evaluation.command import evaluate
from fastrot.evaluation.measurements import read_measurements
from fastrot.evaluation.run import EvalRequest
from tests.fastrot.dying import die_at

CALLS = ("open", "pwrite", "write", "fdatasync", "fsync", "rename", "mkdir", "posix_fallocate")
_USUAL = ("model.width=8", "features.layers=[layer4,pool]", "features.resolution=16", "knn.k=[1]")
SETTINGS = (*_USUAL, "features.resize=18", "linear.epochs=1", "linear.milestones=[]")
REQUESTS: dict[str, dict[str, Any]] = {
    "knn-a": {"protocol": "knn", "data": "a", "beside_random": True},
    "knn-b": {"protocol": "knn", "data": "b"},
    "half": {"protocol": "linear", "data": "a", "overrides": (*SETTINGS, "linear.subset=0.5")},
    "most": {"protocol": "linear", "data": "a", "overrides": (*SETTINGS, "linear.subset=0.75")},
    "augmented": {"protocol": "linear", "data": "a", "mode": "augmented"},
    "again": {"protocol": "knn", "data": "a"},
}
"""Two datasets, two subsets, two modes and a random column."""

Scores = dict[str, Any]


def measure(folder: Path, out: Path, name: str) -> None:
    """Run a request by its name."""
    usual: dict[str, Any] = {"model": "resnet18", "overrides": SETTINGS, "progress": False}
    wanted = usual | REQUESTS[name]
    data = folder / wanted.pop("data")
    evaluate(
        EvalRequest(
            checkpoint=folder / "weights.safetensors",
            train=data / "train",
            test=data / "test",
            out=out,
            **wanted,
        )
    )


def scores(out: Path) -> Scores:
    """All that is listed, by key, the random column too."""
    found, problems = read_measurements(out)
    assert problems == [], problems
    return {
        one.key: [
            [[s.name, s.metric, s.value] for s in part or ()]
            for part in (one.result.scores, one.result.random)
        ]
        for one in found
    }


def start(folder: Path, out: Path, name: str, call: int = 0) -> bool:
    """Whether the start was killed."""
    child = os.fork()
    if child == 0:
        try:
            if call:
                die_at(call, CALLS)
            measure(folder, out, name)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not killed and status != 0:
        raise SystemExit(f"the start failed: status {status}")
    return killed


def main() -> None:
    """Measure all requests once, then kill those that are named."""
    folder, every, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)  # a fork has one thread: no other may be needed
    measured = folder / "measured"
    wanted = list(REQUESTS)
    for name in wanted[: 1 + max(map(wanted.index, names))]:
        before = scores(measured)
        base = folder / f"before-{name}"
        if name in names:
            shutil.copytree(measured, base) if measured.exists() else base.mkdir()
        start(folder, measured, name)
        after = scores(measured)
        call = every if name in names else 0
        while call:
            out = folder / f"{name}-{call}"
            shutil.copytree(base, out)
            killed = start(folder, out, name, call)
            left = scores(out)
            lost = [key for key, value in before.items() if left.get(key) != value]
            if killed:
                start(folder, out, name)
            record = {"name": name, "call": call, "killed": killed, "lost": len(lost)}
            print(json.dumps(record | {"same": scores(out) == after}), flush=True)
            shutil.rmtree(out)
            call = call + every if killed else 0
    print(json.dumps({"measurements": len(scores(measured))}))


if __name__ == "__main__":
    main()
