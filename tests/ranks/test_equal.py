"""Two ranks train what one rank trains: the same samples, and up to rounding the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

STEPS, BATCH = 10, 8

EXACT = (
    *("model.name=resnet18", "model.width=64", "model.stem=imagenet", "data.resolution=32"),
    *("train.precision=fp64", f"train.global_batch={BATCH}", f"train.max_steps={STEPS}"),
)


@pytest.mark.slow
def test_two_ranks_equal_one_in_float64(start: Callable[..., Any]) -> None:
    # Synchronised statistics are those of the reference on the CPU; rounding alone is left,
    # of 1e-16 a step and grown by training.
    one = start("one", ranks=1, settings=EXACT)
    one.wait()
    two = start("two", settings=EXACT)
    words = two.wait()
    assert words.count("run folder:") == 1, "the other rank is silent"
    assert one.samples() == two.samples() and len(one.samples()) == STEPS
    ours, theirs = two.tensors(STEPS), one.tensors(STEPS)
    assert ours.keys() == theirs.keys()
    furthest = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    assert furthest < 1e-8, furthest
    moved = one.tensors(0)
    assert any(not torch.equal(theirs[name], moved[name]) for name in theirs), "nothing was learnt"
    # Own statistics on each rank are another training: the switch does something, and is seen.
    apart = start("apart", settings=(*EXACT, "model.sync_bn=false"))
    apart.wait()
    assert apart.samples() == one.samples()
    name = "model.backbone.layer4.1.conv2.weight"
    assert float((apart.tensors(STEPS)[name] - theirs[name]).abs().max()) > 1e-6


@pytest.mark.slow
def test_torchrun_starts_the_same_run(start: Callable[..., Any], torchrun: tuple[str, ...]) -> None:
    tiny = ("train.max_steps=4", "train.global_batch=64", "train.micro_batch=8")
    ours = start("ours", settings=tiny)
    ours.wait()
    theirs = start("theirs", settings=tiny, command=torchrun)
    theirs.wait()
    assert ours.samples() == theirs.samples() and len(ours.samples()) == 4
    for name, tensor in ours.tensors(4).items():
        assert torch.equal(tensor, theirs.tensors(4)[name]), name
