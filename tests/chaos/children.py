"""What the server's children run besides the command line. Imports no pytest: that takes long."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import torch
import xxhash

from fastrot.cli.app import main
from fastrot.data.beton.dataset import BetonDataset
from fastrot.errors import FastrotError, MismatchError
from fastrot.features.cache import FeatureCache
from fastrot.runs.checkpoint import save_checkpoint
from fastrot.runs.folder import RunFolder

RUN_ID = "0123456789abcdef"


def save_two(folder: str) -> None:
    """Save one step upon another."""
    for step in (1, 2):
        tensors = {"model.w": torch.full((3000,), float(step))}
        save_checkpoint(Path(folder), step, tensors, {"s": step}, run_id=RUN_ID)


def hold_run(folder: str, barrier: str) -> None:
    """Wait for the barrier, own the run folder, wait for the end."""
    _wait_for(barrier)
    try:
        with RunFolder(folder, resume=True) as run:
            Path(f"{barrier}.won-{os.getpid()}").touch()
            run.write_status("running", step=1, epoch=0.1)
            _wait_for(f"{barrier}.over")
    except MismatchError as error:
        print(error)
        raise SystemExit(error.exit_code) from None


def _wait_for(path: str) -> None:
    deadline = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.002)


def read_all(path: str) -> None:
    """Print a digest of every sample of a .beton, or the line that refuses it."""
    digest = xxhash.xxh3_128()
    try:
        samples = BetonDataset(path)
        for i in range(len(samples)):
            digest.update(samples.decode(i).tobytes())
            digest.update(bytes(samples.labels[i]))
    except FastrotError as error:
        print(f"fastrot: {error}")
        raise SystemExit(error.exit_code) from None
    print(digest.hexdigest())


def read_features(path: str) -> None:
    """Open a feature cache."""
    try:
        FeatureCache.open(Path(path))
    except FastrotError as error:
        print(f"fastrot: {error}")
        raise SystemExit(error.exit_code) from None


def jumping_clock(jump: str, *arguments: str) -> None:
    """The command line under a time of day that jumps at every look."""
    real, looks = time.time, itertools.count()
    time.time = lambda: real() + float(jump) * (next(looks) % 2)
    main(list(arguments))
