"""A rank of a probe on online crops, in its environment: ``rank_online.py FOLDER OUT STOP``.

Measures FOLDER/weights.safetensors on FOLDER/train and FOLDER/test, saves its state after every
step, and writes the loss of every step to OUT-RANK.json. The last rank kills itself after STOP
steps; 0: never.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch

from fastrot.distributed.world import read_world
from fastrot.errors import FastrotError
from fastrot.evaluation import run
from fastrot.evaluation.command import evaluate
from fastrot.evaluation.linear import training
from fastrot.evaluation.linear.heads import LinearHeads
from fastrot.evaluation.run import EvalRequest

SETTINGS = (
    *("model.width=8", "features.layers=[stem,pool]", "features.resolution=32"),
    *("features.resize=36", "linear.epochs=2", "linear.milestones=[1]", "linear.batch=4"),
)


def main() -> None:
    """Measure, and exit with the code of the failure."""
    folder, out, stop = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    world, kept = read_world(), list[object]()
    losses = LinearHeads.losses

    def kept_losses(heads: LinearHeads) -> tuple[dict[str, float], int]:
        found = losses(heads)
        kept.append(found)
        if len(kept) == stop and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    LinearHeads.losses = kept_losses  # type: ignore[method-assign]
    training._CHECK_STEPS = 1
    run.evaluate_linear_online = partial(run.evaluate_linear_online, save_seconds=0)
    request = EvalRequest(
        checkpoint=folder / "weights.safetensors", protocol="linear", mode="augmented",
        train=folder / "train", test=folder / "test", model="resnet18", overrides=SETTINGS,
        out=out, progress=False,
    )  # fmt: skip
    try:
        report = evaluate(request)
    except FastrotError as error:
        print(error)
        sys.exit(error.exit_code)
    assert (report is not None) == world.is_main
    out.with_name(f"{out.name}-{world.rank}.json").write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
