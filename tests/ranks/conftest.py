"""Two ranks of this machine, as users start them, and what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SMALL = (
    *("model.width=8", "train.threads=1", "sinks.tensorboard=false", "train.sample_log=ids"),
    *("train.log_seconds=0.2", "data.val=null"),
)


@dataclass
class Run:
    """``fastrot train`` as a child process, and its run folder."""

    out: Path
    process: subprocess.Popen[str] = field(repr=False)

    def wait(self, code: int = 0, seconds: float = 120) -> str:
        """Its standard error, once it has left with this code."""
        _, words = self.process.communicate(timeout=seconds)
        assert self.process.returncode == code, words[-4000:]
        return words

    def rank(self, rank: int) -> int:
        """Process id of a rank, once it runs."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    environment = (folder / "environ").read_bytes().split(b"\0")
                    words = (folder / "cmdline").read_bytes()
                except OSError:
                    continue
                if f"RANK={rank}".encode() in environment and str(self.out).encode() in words:
                    if b"torch.distributed.run" not in words:
                        return int(folder.name)
            time.sleep(0.05)
        raise AssertionError(f"rank {rank} did not start")

    def reached(self, step: int) -> None:
        """Wait until its log tells of a step."""
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            samples = self.out / "samples.jsonl"
            if samples.is_file() and samples.read_bytes().count(b"\n") >= step:
                return
            time.sleep(0.02)
        raise AssertionError(f"did not reach step {step}: {self.process.poll()}")

    @property
    def status(self) -> dict[str, Any]:
        """What ``status.json`` says."""
        return dict(json.loads((self.out / "status.json").read_text()))

    def samples(self) -> list[list[int]]:
        """Sample ids of every step."""
        return [json.loads(line)["ids"] for line in (self.out / "samples.jsonl").open()]

    def tensors(self, step: int) -> dict[str, torch.Tensor]:
        """Of a checkpoint."""
        return load_file(self.out / "checkpoints" / f"step-{step:08d}" / "tensors.safetensors")


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start training in a run folder; whatever still runs at the end is killed."""
    runs: list[Run] = []

    def begin(
        name: str,
        *arguments: str,
        ranks: int = 2,
        settings: tuple[str, ...] = (),
        command: tuple[str, ...] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Run:
        out = tmp_path / name
        program = command or (sys.executable, "-m", "fastrot")
        words = [*program, "train", "--out", str(out), *arguments]
        if command is None and ranks > 1:
            words += ["--gpus", str(ranks)]
        words += [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
        process = subprocess.Popen(
            words,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        runs.append(Run(out, process))
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.communicate()
    assert not left_over(tmp_path), "processes were left behind"


def left_over(folder: Path) -> list[int]:
    """Processes whose command names a folder, ten seconds from now at the latest."""
    end = time.monotonic() + 10
    while True:
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            try:
                if str(folder).encode() in (each / "cmdline").read_bytes():
                    found.append(int(each.name))
            except OSError:
                continue
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


@pytest.fixture
def torchrun() -> tuple[str, ...]:
    """The launcher that others know, before ``train``."""
    return (
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("--max-restarts=1", "-m", "fastrot"),
    )
