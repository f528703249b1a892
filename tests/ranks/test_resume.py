"""Resume anywhere, on any number of ranks: every step k x world {1, 2} -> {1, 2}."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastrot.data.sampling.sampler import Sampler

STEPS, BATCH, DIGITS = 5, 512, 1497  # two steps an epoch
GRID = (
    *(f"train.global_batch={BATCH}", "pretext.views=one", "model.width=8", "data.crop=whole"),
    *("train.checkpoint_steps=1", f"train.keep_checkpoints={STEPS + 1}"),
    *("train.precision=fp64", f"train.max_steps={STEPS}"),
)


@pytest.fixture(scope="module")
def whole(server: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """An uninterrupted run on one rank, and one on two."""
    from tests.ranks.conftest import Ranks

    folder = tmp_path_factory.mktemp("whole")
    runs = {size: Ranks(server, folder / f"{size}", size=size, settings=GRID) for size in (1, 2)}
    for run in runs.values():
        run.end()
    return runs


def cut_back(run: Path, out: Path, step: int) -> None:
    """What a run that was killed after a step has left: checkpoints up to it, and longer logs."""
    shutil.copytree(run, out)
    for folder in (out / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


@pytest.mark.fault(19)
@pytest.mark.parametrize(
    ("before", "after"),
    [(1, 2), (2, 1), *(pytest.param(size, size, marks=pytest.mark.chaos) for size in (1, 2))],
)
@pytest.mark.parametrize(
    "step",
    [pytest.param(i, marks=pytest.mark.chaos if i != STEPS - 2 else ()) for i in range(STEPS)],
)
def test_resume_after_every_step(
    whole: dict[int, Any],
    train: Callable[..., Any],
    tmp_path: Path,
    before: int,
    after: int,
    step: int,
) -> None:
    expected = [
        Sampler(DIGITS, BATCH).global_ids(*divmod(step, DIGITS // BATCH)).tolist()
        for step in range(STEPS)
    ]
    assert whole[before].samples() == expected
    cut_back(whole[before].out, tmp_path / "run", step)
    run = train("run", "--resume", size=after, settings=GRID)
    main, *_ = run.end()
    assert (f"{after} ranks now, {before} before" in main.text) == (after != before)
    assert run.samples() == expected
    ours, theirs = run.tensors(STEPS), whole[before].tensors(STEPS)
    assert ours.keys() == theirs.keys()
    if after == before:
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    else:  # the same mathematics, summed in another order
        furthest = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
        assert furthest < 1e-8
