"""Two ranks train what one rank trains: the same samples, and up to rounding the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

STEPS, BATCH = 10, 8

EXACT = (
    *("model.name=resnet18", "model.stem=imagenet", "data.resolution=32"),
    *("train.precision=fp64", f"train.global_batch={BATCH}", f"train.max_steps={STEPS}"),
)


@pytest.mark.parametrize("width", [16, pytest.param(64, marks=pytest.mark.chaos)])
def test_two_ranks_equal_one_in_float64(train: Callable[..., Any], width: int) -> None:
    # Synchronised statistics are those of the reference on the CPU; rounding alone is left,
    # of 1e-16 a step and grown by training.
    exact = (*EXACT, f"model.width={width}")
    one = train("one", size=1, settings=exact)
    one.end()
    two = train("two", settings=exact)
    main, other = two.end()
    assert "run folder:" in main.text and not other.text, "the other rank is silent"
    assert one.samples() == two.samples() and len(one.samples()) == STEPS
    ours, theirs = two.tensors(STEPS), one.tensors(STEPS)
    assert ours.keys() == theirs.keys()
    furthest = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    print(f"furthest: {furthest:.2e}")
    assert furthest < 1e-8
    begun = one.tensors(0)
    name = "model.backbone.layer4.1.conv2.weight"
    assert float((theirs[name] - begun[name]).abs().max()) > 1e-4, "nothing was learnt"
    # Own statistics on each rank are another training: the switch does something, and is seen.
    apart = train("apart", settings=(*exact, "model.sync_bn=false"))
    apart.end()
    assert apart.samples() == one.samples()
    assert float((apart.tensors(STEPS)[name] - theirs[name]).abs().max()) > 1e-6


def test_digests_are_those_of_all_ranks_and_accumulated_passes(train: Callable[..., Any]) -> None:
    small = ("train.max_steps=3", "train.global_batch=32", "train.sample_log=digest")
    parts = {1: small, 2: (*small, "train.micro_batch=4")}
    runs = [train(f"of-{size}", size=size, settings=parts[size]) for size in parts]
    for run in runs:
        run.end()
    one, two = ((run.out / "samples.jsonl").read_text() for run in runs)
    assert one == two and one.count("ids_xxh3_64") == 3


@pytest.mark.chaos
def test_each_launcher_starts_the_same_run(launch: Callable[..., Any]) -> None:
    tiny = ("train.max_steps=3", "train.global_batch=64")
    ours = launch("ours", "own", settings=tiny)
    ours.end()
    theirs = launch("theirs", "torchrun", settings=tiny)
    theirs.end()
    assert ours.samples() == theirs.samples() and len(ours.samples()) == 3
    for name, tensor in ours.tensors(3).items():
        assert torch.equal(tensor, theirs.tensors(3)[name]), name
