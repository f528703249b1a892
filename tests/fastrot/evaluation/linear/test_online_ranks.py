"""A probe on online crops on two ranks: the losses and scores of one, whoever is killed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from fastrot.config import ModelConfig
from fastrot.distributed.rank_environment import rank_environment
from fastrot.models.backbones import build_model
from tests.program import start_python

SCRIPT = Path(__file__).with_name("rank_online.py")
STEPS = 6  # of an epoch: 21 images in batches of 4, so the last one has nothing for rank 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, 21 training images of three classes, and 9 test images: two batches and a bit."""
    root = tmp_path_factory.mktemp("probe")
    model = build_model(ModelConfig(name="resnet18", width=8), seed=0).backbone
    save_file(model.state_dict(), root / "weights.safetensors")
    write_images(root)
    return root


def write_images(root: Path) -> None:
    made = np.random.default_rng(0)
    for split, count in (("train", 7), ("test", 3)):
        for name in ("ape", "bee", "cat"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = made.integers(0, 256, (40, 44, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")


def probed(
    folder: Path, out: Path, ranks: int, *, stop: int = 0, codes: tuple[int, ...] = ()
) -> tuple[list[Any], str]:
    """The losses of each step, the same on all ranks, and what was printed."""
    store = out.with_name(f"{out.name}-{ranks}-{stop}.store")
    processes = [
        start_python(
            [sys.executable, str(SCRIPT), str(folder), str(out), str(stop)],
            env={**os.environ, **(rank_environment(rank, ranks, store) if ranks > 1 else {})},
        )
        for rank in range(ranks)
    ]
    texts = [process.communicate() for process in processes]
    words = "\n".join(text for both in texts for text in both)
    assert [process.returncode for process in processes] == list(codes or [0] * ranks), words
    if codes:
        return [], words
    losses = [json.loads(out.with_name(f"{out.name}-{r}.json").read_text()) for r in range(ranks)]
    assert all(each == losses[0] for each in losses)
    return losses[0], words


def scores(out: Path) -> list[Any]:
    (file,) = out.glob("*/result.json")
    return [[s["name"], s["metric"], s["value"]] for s in json.loads(file.read_text())["scores"]]


@pytest.fixture(scope="module")
def one(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The folder and the losses of one rank."""
    out = tmp_path_factory.mktemp("one") / "out"
    return out, probed(folder, out, 1)[0]


def test_two_ranks_equal_one(folder: Path, one: tuple[Path, list[Any]], tmp_path: Path) -> None:
    losses, _ = probed(folder, tmp_path / "two", 2)
    assert [samples for _, samples in losses] == [4, 4, 4, 4, 4, 1] * 2
    assert_close(losses, one[1])
    assert losses[0][0]["stem"] != losses[STEPS][0]["stem"], "nothing was learnt"
    assert scores(tmp_path / "two") == scores(one[0])


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.chaos)])
def test_after_a_rank_was_killed_as_many_or_fewer_go_on(
    ranks: int, folder: Path, one: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    probed(folder, out, 2, stop=STEPS + 3, codes=(69, -9))  # within the second epoch
    rest, _ = probed(folder, out, ranks)
    assert STEPS - 3 <= len(rest) <= STEPS - 2  # the main rank may not have saved the last step
    assert_close(rest, one[1][-len(rest) :])
    assert scores(out) == scores(one[0])
    assert probed(folder, out, ranks)[0] == []  # finished: nothing is trained


def assert_close(losses: list[Any], expected: list[Any]) -> None:
    assert len(losses) == len(expected) > 0
    for (ours, samples), (theirs, others) in zip(losses, expected, strict=True):
        assert samples == others and ours == pytest.approx(theirs, abs=1e-6)


def test_an_image_that_one_rank_cannot_read_ends_both(folder: Path, tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "weights.safetensors").symlink_to(folder / "weights.safetensors")
    damaged = tmp_path / "train" / "bee" / "4.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    _, words = probed(tmp_path, tmp_path / "out", 2, codes=(65, 65))
    assert "bee/4.png" in words and "repair or remove it" in words
    assert not list((tmp_path / "out").glob("*/result.json"))
