"""Ranks of this machine, one by one or from a launcher, and what they leave."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastrot.distributed.rank_environment import rank_environment
from tests.program import Ended, Hang, Program, Server, poll, process_state, shared_server

SMALL = (
    *("model.width=8", "train.threads=1", "sinks.tensorboard=false", "train.sample_log=ids"),
    *("train.log_seconds=0.2", "data.val=null", "data.workers=0"),
)


def arguments(out: Path, *more: str, settings: tuple[str, ...] = ()) -> list[str]:
    """Of a small run on the embedded digits."""
    words = ["train", "--out", str(out), *more]
    return words + [word for setting in (*SMALL, *settings) for word in ("--set", setting)]


class Folder:
    """A run folder."""

    def __init__(self, out: Path) -> None:
        self.out = out

    @property
    def status(self) -> dict[str, Any]:
        """What ``status.json`` says."""
        return dict(json.loads((self.out / "status.json").read_text()))

    @property
    def steps(self) -> int:
        """Steps that its log tells of."""
        samples = self.out / "samples.jsonl"
        return samples.read_bytes().count(b"\n") if samples.is_file() else 0

    @property
    def validations(self) -> list[dict[str, Any]]:
        """What its log tells of validations, apart from the time of day."""
        records = [json.loads(line) for line in (self.out / "metrics.jsonl").open()]
        for record in records:
            del record["time"]
        return [record for record in records if record["kind"] == "validation"]

    def samples(self) -> list[list[int]]:
        """Sample ids of every step."""
        return [json.loads(line)["ids"] for line in (self.out / "samples.jsonl").open()]

    def tensors(self, step: int) -> dict[str, torch.Tensor]:
        """Of a checkpoint."""
        return load_file(self.out / "checkpoints" / f"step-{step:08d}" / "tensors.safetensors")


class Ranks(Folder):
    """The ranks of one start, each forked by the server."""

    def __init__(
        self,
        server: Server,
        out: Path,
        *more: str,
        size: int = 2,
        settings: tuple[str, ...] = (),
        program: str | None = None,
        first: str | None = None,
        environment: dict[str, str] | None = None,
        present: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(out)
        store = server.folder / secrets.token_hex(8)
        words = arguments(out, *more, settings=settings)
        if program is not None:
            words = [program, *([] if first is None else [first]), *words]
        self.ranks: list[Program] = [
            server.start(
                *words,
                environment={
                    **(rank_environment(rank, size, store) if size > 1 else {}),
                    **(environment or {}),
                },
            )
            for rank in (range(size) if present is None else present)
        ]

    def end(self, *codes: int, seconds: float = 300) -> list[Ended]:
        """How each rank ended, which was with these codes (all 0 if none is given)."""
        ended = [rank.end(seconds) for rank in self.ranks]
        found = [each.code for each in ended]
        text = "\n".join(each.text[-3000:] for each in ended)
        assert found == list(codes or [0] * len(ended)), f"{found}\n{text}"
        assert not any(each.orphans for each in ended)
        return ended

    def reached(self, step: int) -> None:
        """Wait until the log tells of a step."""
        poll(
            lambda: self.steps >= step or not all(rank.runs for rank in self.ranks),
            f"step {step}",
        )
        assert self.steps >= step, [rank.output.read_text() for rank in self.ranks]


class Launched(Folder):
    """A launcher and its ranks, as a user starts them."""

    def __init__(self, out: Path, command: list[str]) -> None:
        super().__init__(out)
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def end(self, code: int = 0, seconds: float = 600) -> str:
        """Its standard error, once it has left with this code."""
        _, words = self.process.communicate(timeout=seconds)
        assert self.process.returncode == code, words[-4000:]
        return words

    def rank(self, rank: int, *, not_pid: int = 0) -> int:
        """Process id of a rank that trains."""
        end = time.monotonic() + 300
        while time.monotonic() < end:
            for pid in _processes(str(self.out)):
                try:
                    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if f"RANK={rank}".encode() in environment and pid != not_pid:
                    return pid
            time.sleep(0.02)
        raise Hang(f"rank {rank} did not start")

    def reached(self, step: int) -> None:
        """Wait until the log tells of a step."""
        poll(lambda: self.steps >= step or self.process.poll() is not None, f"step {step}", 300)
        assert self.steps >= step

    def close(self) -> None:
        """End what still runs; nothing should be left behind."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.communicate(timeout=60)
        end = time.monotonic() + 100
        while (left := _processes(str(self.out))) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left, "processes were left behind"


def _processes(word: str) -> list[int]:
    """Running processes whose command line has a word."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (entry / "cmdline").read_bytes() and process_state(
                int(entry.name)
            ) not in ("Z", ""):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="session")
def server() -> Server:
    """Starts fastrot in 20 ms."""
    return shared_server()


@dataclass(frozen=True)
class Damaged:
    """A folder of photos of which some are none."""

    path: Path
    samples: tuple[int, ...]


@pytest.fixture(scope="session")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    """128 images of noise; six of them, of both ranks' shares, are cut short."""
    folder = tmp_path_factory.mktemp("damaged")
    generator = np.random.default_rng(0)
    bad = (3, 40, 41, 77, 100, 127)
    for number in range(128):
        file = folder / "class" / f"{number:03d}.jpg"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), np.uint8)).save(file)
        if number in bad:
            file.write_bytes(file.read_bytes()[:60])
    return Damaged(folder, bad)


Train = Callable[..., Ranks]


@pytest.fixture
def train(server: Server, tmp_path: Path) -> Train:
    """``train(name, *arguments, size=2, settings=(...))`` starts the ranks of a run."""

    def begin(name: str, *more: str, **options: Any) -> Ranks:
        return Ranks(server, tmp_path / name, *more, **options)

    return begin


Launch = Callable[..., Launched]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """``launch(name, launcher, ...)`` starts ``own`` or ``torchrun`` with two ranks."""
    runs: list[Launched] = []

    def begin(
        name: str, launcher: str, *more: str, settings: tuple[str, ...] = (), restarts: int = 0
    ) -> Launched:
        words = arguments(tmp_path / name, *more, settings=settings)
        if launcher == "torchrun":
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node=2", f"--max-restarts={restarts}", "-m", "fastrot"]
        else:
            command = [sys.executable, "-m", "fastrot"]
            words += ["--gpus", "2", "--restarts", str(restarts)]
        runs.append(Launched(tmp_path / name, [*command, *words]))
        return runs[-1]

    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "5"
    yield begin
    for run in runs:
        run.close()
