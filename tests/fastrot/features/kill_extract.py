"""Kills an extraction again and again, each time at a later call that changes a file.

``python -m tests.fastrot.features.kill_extract RUN PHOTOS FOLDER CROPS...`` extracts into
FOLDER/CROPS. It forks a child for each start, which is killed at its 6th, 12th, 18th ... call until
the files are made, then after about one batch of rows, until one gets to the end. Prints one line
of JSON for each.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # which the first custom operation imports: once here, not in every fork

from fastrot.data.sampling.crops import Crop
from fastrot.data.sources.dataset import FolderDataset
from fastrot.features.extract import ExtractOptions, extract_features
from fastrot.features.manifest import MANIFEST
from fastrot.features.spec import FeatureSpec
from fastrot.features.writer import DONE, FeatureWriter, read_plan
from fastrot.weights.load import Backbone, load_backbone
from tests.fastrot.dying import die_at

CALLS = ("open", "pwrite", "write", "fdatasync", "fsync", "rename", "unlink", "posix_fallocate")


def start(backbone: Backbone, photos: Path, out: Path, crops: int, call: int) -> bool:
    """Whether the start was killed."""
    child = os.fork()
    if child == 0:
        die_at(call, CALLS)
        samples, crop = FolderDataset(photos), Crop("center", 64, resize=73)
        spec = FeatureSpec.settle(
            backbone, samples, torch.device("cpu"), layers=("layer1", "pool"), crop=crop,
            crops=crops,
        )  # fmt: skip
        how = ExtractOptions(batch=4, workers=1, progress=False)
        extract_features(backbone, samples, out, spec, how)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not killed and status != 0:
        raise SystemExit(f"the start failed: status {status}")
    return killed


def until_done(backbone: Backbone, photos: Path, out: Path, crops: int) -> None:
    """Start until one is not killed."""
    killed, call = True, 0
    while killed:
        ready = (read_plan(out) or {}).get("ready", False)
        call = max(14, min(call, 20) + 1) if ready else call + 6
        killed = start(backbone, photos, out, crops, call)
        done, complete = out / DONE, (out / MANIFEST).exists()
        batches = 5 * max(1, crops)
        flags = np.fromfile(done, np.uint8) if done.exists() else np.zeros(batches, np.uint8)
        left = 0 if complete else batches - int(flags.sum())
        record = {"crops": crops, "killed": killed, "complete": complete, "left": left}
        print(json.dumps(record), flush=True)


def main() -> None:
    """Extract once for each number of crops."""
    run, photos, folder = map(Path, sys.argv[1:4])
    torch.set_num_threads(1)  # a fork has one thread: no other may be needed
    # Everything is synced at once, so that there are calls to be killed at.
    FeatureWriter.__init__.__kwdefaults__["sync_seconds"] = 0.0
    backbone = load_backbone(run)
    for crops in map(int, sys.argv[4:]):
        until_done(backbone, photos, folder / str(crops), crops)


if __name__ == "__main__":
    main()
