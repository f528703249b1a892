"""Dense models on two ranks: they train and test what one does, and resume to the same bits."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastrot.distributed.rank_environment import rank_environment
from fastrot.system.jsonl import read_json_lines
from tests.program import start_python

SCRIPT = Path(__file__).with_name("rank_dense.py")
STEPS = 4


def run(kind: str, folder: Path, ranks: int, *, stop: str = "", codes: tuple[int, ...] = ()) -> Any:
    """Train and test; return what was found in the test images."""
    store = folder.with_name(f"{folder.name}-{ranks}-{stop}.store")
    processes = [
        start_python(
            [sys.executable, str(SCRIPT), kind, str(folder), stop],
            env={**os.environ, **(rank_environment(rank, ranks, store) if ranks > 1 else {})},
        )
        for rank in range(ranks)
    ]
    texts = ["\n".join(process.communicate()) for process in processes]
    found = [process.returncode for process in processes]
    assert found == list(codes or [0] * ranks), "\n".join(texts)
    return None if codes else json.loads(folder.with_name(f"{folder.name}.json").read_text())


def tensors(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "tensors.safetensors")


def losses(folder: Path) -> list[dict[str, float]]:
    """Each loss of every step."""
    records = [r for r in read_json_lines(folder / "metrics.jsonl") if r["kind"] == "train"]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return [{k: v for k, v in record.items() if k.startswith("loss")} for record in records]


@pytest.mark.parametrize("kind", ["fcn", pytest.param("c4", marks=pytest.mark.chaos), "fpn"])
def test_two_ranks_equal_one_in_float64(kind: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run(kind, one, 1)
    found = run(kind, two, 2)
    for ours, theirs in zip(losses(two), losses(one), strict=True):
        assert len(ours) == {"fcn": 3, "c4": 5, "fpn": 6}[kind]
        assert ours == pytest.approx(theirs, abs=1e-6)
    weights, begun = tensors(one), tensors(one, 0)
    furthest = {n: float((t - tensors(two)[n]).abs().max()) for n, t in weights.items()}
    print(f"furthest: {max(furthest.values()):.1e}")
    assert max(furthest.values()) < 1e-6, furthest
    moved = [n for n, t in weights.items() if float((t - begun[n]).abs().max()) > 1e-5]
    assert len(moved) > len(weights) / 2, "nothing was learnt"
    # The same weights find the same on one rank as on two, to the last bit; five images.
    shutil.copytree(two, tmp_path / "same")
    assert run(kind, tmp_path / "same", 1) == found
    assert len(found) == (2 if kind == "fcn" else 5)


@pytest.mark.chaos
@pytest.mark.parametrize(("stop", "codes"), [("term", (75, 75)), ("kill", (69, -9))])
def test_two_ranks_that_are_stopped_resume_to_the_same_bits(
    stop: str, codes: tuple[int, ...], tmp_path: Path
) -> None:
    """torchvision samples anchors and regions by ``randperm``, and draws a side for each image."""
    whole = run("c4-drawn", tmp_path / "whole", 2)
    parts = tmp_path / "parts"
    run("c4-drawn", parts, 2, stop=stop, codes=codes)
    step = 3 if stop == "term" else 2  # a stop is obeyed after a step
    assert max(path.name for path in (parts / "checkpoints").iterdir()) == f"step-{step:08d}"
    assert run("c4-drawn", parts, 2) == whole
    expected = tensors(tmp_path / "whole")
    assert all(torch.equal(expected[name], tensor) for name, tensor in tensors(parts).items())
