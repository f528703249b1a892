"""Two gloo ranks of one machine train one run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastrot.data.order import SampleOrder

STEPS, BATCH, DIGITS = 4, 64, 1497


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", ["null", "8"])
def test_two_ranks_share_each_step(tmp_path: Path, micro_batch: str) -> None:
    out = tmp_path / "run"
    settings = (
        "model.width=8",
        "train.threads=1",
        f"train.max_steps={STEPS}",
        f"train.micro_batch={micro_batch}",
        "train.sample_log=ids",
        "sinks.tensorboard=false",
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "-m", "fastrot", "train", "--out", str(out)]
        + [word for setting in settings for word in ("--set", setting)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((out / "status.json").read_text())["state"] == "done"
    assert done.stderr.count("run folder:") == 1  # the other rank is silent
    order = SampleOrder(DIGITS, BATCH, world=2, rank=0)
    for step, line in enumerate((out / "samples.jsonl").open()):
        assert json.loads(line)["ids"] == order.rank_ids(0, step).tolist()
    assert step == STEPS - 1
