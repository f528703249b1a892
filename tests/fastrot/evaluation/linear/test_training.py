"""Scores, ties, and the gap between two modes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastrot.errors import BadDataError
from fastrot.evaluation.linear.heads import HeadShape, LinearHeads
from fastrot.evaluation.linear.rows import FeatureBatch
from fastrot.evaluation.linear.state import (
    Curves,
    Progress,
    load_state,
    save_state,
)
from fastrot.evaluation.linear.training import mode_gap, ranks, score_heads, scores_of, train_heads
from fastrot.evaluation.protocol import LinearConfig
from fastrot.evaluation.result import Score
from fastrot.system.files import remove_temporaries

CURVES = {"pool": [[2.0, 30.0, 80.0], [1.0, 50.0, 85.0], [0.9, 50.0, 84.0], [0.8, 40.0, 90.0]]}


def test_among_equal_logits_the_lower_class_wins() -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 2.0, 2.0], [3.0, 0.0, 1.0]])
    assert ranks(logits, torch.tensor([0, 2, 2, 1])).tolist() == [0, 2, 1, 2]


def test_top_1_and_top_5_are_counted_over_all_batches() -> None:
    heads = LinearHeads(
        [HeadShape("pool", 6, 1)], 6, LinearConfig(batchnorm=False), torch.device("cpu")
    )
    state = heads.state()
    state["pool.weight"], state["pool.bias"] = torch.eye(6), torch.zeros(6)
    heads.load(state, "")
    x = torch.arange(6, 0, -1).float()[None]  # class 0 first, class 5 last
    batches = [
        FeatureBatch({"pool": x.repeat(3, 1)}, torch.tensor([0, 4, 5])),
        FeatureBatch({"pool": x}, x[0, :1].long() * 0),
    ]
    assert score_heads(heads, batches)["pool"] == (50.0, 75.0)


@pytest.mark.parametrize(("report", "epoch", "top1"), [("last", 4, 40.0), ("best", 2, 50.0)])
def test_the_epoch_that_the_protocol_reports(report: str, epoch: int, top1: float) -> None:
    config = LinearConfig.model_validate({"report": report})
    first, fifth = scores_of(CURVES, config, "cached-1", {"note": 1})
    assert (first.name, first.metric, first.value) == ("pool", "top1", top1)
    assert fifth.metric == "top5" and fifth.value == CURVES["pool"][epoch - 1][2]
    assert first.detail["epoch"] == epoch and first.detail["mode"] == "cached-1"
    assert first.detail["best"] == 50.0 and first.detail["best_epoch"] == 2  # the first of two
    assert first.detail["curve"] == [30.0, 50.0, 50.0, 40.0] and first.detail["note"] == 1
    assert first.detail.get("selected_on") == ("test" if report == "best" else None)
    assert Score.from_json(first.to_json()) == first


def probe(mode: str, value: float) -> Score:
    return Score("pool", "top1", value, "pool", {"mode": mode})


def test_the_gap_is_augmented_minus_cached() -> None:
    detail = {"mode": "first of 4 crops", "strength": 0.01}
    optimum = Score("pool optimum", "top1", 70.0, "pool", detail)  # only of cached features
    assert mode_gap([probe("augmented", 60.0)], [probe("cached-4", 57.5), optimum]) == {
        "pool top1": 2.5
    }


def test_a_gap_between_other_results_is_refused() -> None:
    with pytest.raises(BadDataError, match="augmented result first"):
        mode_gap([probe("cached-4", 1.0)], [probe("augmented", 1.0)])
    with pytest.raises(BadDataError, match="augmented result first"):
        mode_gap([], [probe("cached-4", 1.0)])
    other = Score("layer4", "top1", 1.0, "layer4", {"mode": "cached-1"})
    with pytest.raises(BadDataError, match="layer4 top1, pool top1: only in one"):
        mode_gap([probe("augmented", 1.0)], [other])


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "linear.safetensors"
    assert load_state(path) is None
    tensors = {"a": torch.randn(3, 4), "b": torch.zeros(2)}
    curves = {"pool": [[0.1, 12.345678901234, 3.0]]}
    progress = Progress(curves, 200, [({"pool": 0.1 + 0.2}, 25_600)] * 2)
    save_state(path, tensors, progress)
    found = load_state(path)
    assert found is not None and found[1] == progress
    assert all(torch.equal(found[0][name], tensor) for name, tensor in tensors.items())
    dead = tmp_path / ".linear.safetensors.00ff00ff.tmp"
    dead.write_bytes(b"half")
    remove_temporaries(tmp_path, path.name)
    assert [file.name for file in tmp_path.iterdir()] == ["linear.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "foreign", "layers", "step", "loss", "uneven"])
def test_a_damaged_state_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "linear.safetensors"
    config = LinearConfig(epochs=2, milestones=())
    heads = heads_of("pool", "stem")
    one = [[1.0, 2.0, 3.0]]
    progress = Progress({"pool": one, "stem": one}, 1, [({"pool": 1.0, "stem": 1.0}, 9)])
    if damage == "layers":
        progress.curves = {"pool": one}
    if damage == "uneven":
        progress.curves["stem"] = []
    if damage == "step":
        progress.step = 2  # an epoch has no more
    if damage == "loss":
        progress.losses = [({"pool": 1.0}, 9)]
    save_state(path, heads.state(), progress)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    if damage == "foreign":
        path.write_bytes(b"not this at all")
    with pytest.raises(BadDataError, match=r"linear\.safetensors: damaged; remove it"):
        train_heads(heads, Batches(2), list, config, path, lambda _: None, save_seconds=0)


def heads_of(*layers: str) -> LinearHeads:
    shapes = [HeadShape(layer, 3, 1) for layer in layers]
    return LinearHeads(shapes, 4, LinearConfig(), torch.device("cpu"))


class Batches:
    """Random rows of 8 samples; raises as a kill would after ``most`` steps of an epoch."""

    def __init__(self, steps: int, most: int | None = None) -> None:
        self.steps, self.most = steps, most

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[FeatureBatch]:
        for step in range(start_step, self.steps):
            if step == self.most:
                raise KeyboardInterrupt
            made = torch.Generator().manual_seed(1000 * epoch + step)
            x = torch.randn(8, 3, generator=made)
            yield FeatureBatch({"pool": x, "stem": 2 * x}, torch.randint(4, (8,), generator=made))


@pytest.mark.parametrize("most", [0, 99, 100, 101, 249])
def test_stopped_within_an_epoch_it_goes_on_from_the_last_stretch(
    tmp_path: Path, most: int
) -> None:
    config, path = LinearConfig(epochs=3, milestones=(1,)), tmp_path / "linear.safetensors"

    def train(most: int | None, said: list[str]) -> Curves:
        heads = heads_of("stem", "pool")
        return train_heads(
            *(heads, Batches(250, most), lambda: Batches(2).epoch(9), config),
            *(path, said.append),
            save_seconds=0,
        )

    whole = train(None, [])
    path.unlink()
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(most, said)
    assert path.exists() == (most > 99)
    assert train(None, said) == whole
    expected = {0: [], 99: [], 249: [200]}.get(most, [100])
    # On a slow machine there are lines about the progress, too.
    assert [line for line in said if "continues" in line] == [
        f"linear probe: continues after epoch 0 and {step} steps of 3" for step in expected
    ]
