"""The linear probe on cached features, whole: learning, kills, small and odd data."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fastrot.errors import BadDataError, MismatchError
from fastrot.evaluation.linear.cached import evaluate_linear
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import EvalConfig
from fastrot.evaluation.result import Score
from fastrot.features.cache import FeatureCache
from fastrot.features.manifest import LayerInfo
from tests.fastrot.features.written_cache import write_cache
from tests.program import start_python

LAYERS = {"layer1": LayerInfo(8, 2, 32, "test"), "pool": LayerInfo(16, 1, 16, "test")}
CLASSES = 10


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps this small only wait for each other's threads; and a rerun is to have as many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cache(path: Path, n: int, seed: int, *, crops: int = 0, zero: bool = False) -> FeatureCache:
    """Classes around centres of their own; layer1 tells them apart well, pool badly."""
    made = np.random.default_rng(0)
    centres = {name: made.normal(size=(CLASSES, info.dim)) for name, info in LAYERS.items()}
    made = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    shape = (n, crops) if crops else (n,)
    features: dict[str, Any] = {}
    for name, spread in (("layer1", 1.0), ("pool", 4.0)):
        noise = made.normal(size=(*shape, LAYERS[name].dim)) * spread
        centre = centres[name][labels]
        features[name] = (centre[:, None] if crops else centre) + noise
        if zero:
            features[name] *= 0
    return write_cache(
        path,
        features=features,
        labels=labels,
        fingerprint={"n": n, "seed": seed, "crops": crops},
        layers=LAYERS,
        class_names=tuple("abcdefghij"),
    )


def settings(**linear: Any) -> EvalConfig:
    linear = {"epochs": 6, "milestones": (4,), "batch": 64, "learning_rate": 0.1, **linear}
    features = {"layers": ("layer1", "pool")}
    return EvalConfig.model_validate(
        {"protocol": "linear", "kind": "linear", "features": features, "linear": linear}
    )


def run(
    train: FeatureCache, test: FeatureCache, folder: Path | None = None, **linear: Any
) -> list[Score]:
    return evaluate_linear(
        train, test, settings(**linear), PartialResults(folder, {}), lambda _: None, save_seconds=0
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureCache, FeatureCache]:
    root = tmp_path_factory.mktemp("caches")
    return cache(root / "train", 600, 1), cache(root / "test", 200, 2)


def test_each_layer_is_learnt_as_well_as_it_can_be(two: tuple[FeatureCache, FeatureCache]) -> None:
    scores = run(*two)
    assert [(s.name, s.metric) for s in scores] == [
        (layer, metric) for layer in LAYERS for metric in ("top1", "top5")
    ]
    layer1, layer1_5, pool, _ = (score.value for score in scores)
    assert layer1 > 95 and 15 < pool < 60 and layer1_5 >= layer1
    assert scores[0].detail["mode"] == "cached-0 (test transform)"
    assert scores[0].detail["loss"][-1] < scores[0].detail["loss"][0]


def test_a_finished_probe_is_not_trained_again(
    tmp_path: Path, two: tuple[FeatureCache, FeatureCache]
) -> None:
    first = run(*two, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["identity.json", "linear.json"]
    assert run(*two, tmp_path / "out") == first == run(*two)


KILLED = """
import sys, time
from pathlib import Path
import torch
sys.path.insert(0, {here!r})
import test_cached as t
from fastrot.evaluation.linear import training as linear_training
save = linear_training.save_state
def slow(*arguments):
    save(*arguments)
    time.sleep(0.3)  # so that a kill finds it between two epochs
linear_training.save_state = slow
torch.set_num_threads(1)
root = Path({root!r})
train, test = (t.FeatureCache.open(root / name) for name in ("train", "test"))
t.run(train, test, root / "out", epochs=30)
"""


@pytest.mark.slow
def test_killed_between_epochs_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    train, test = cache(tmp_path / "train", 600, 1, crops=4), cache(tmp_path / "test", 200, 2)
    whole = run(train, test, tmp_path / "whole", epochs=30)
    state = tmp_path / "out" / "linear.safetensors"
    code = KILLED.format(here=str(Path(__file__).parent), root=str(tmp_path))
    process = start_python([sys.executable, "-c", code])
    try:
        end = time.monotonic() + 600
        while epochs_in(state) < 3:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 3 <= epochs_in(state) < 30
    said: list[str] = []
    parts = PartialResults(tmp_path / "out", {})
    scores = evaluate_linear(train, test, settings(epochs=30), parts, said.append)
    assert said[0].startswith("linear probe: continues after epoch ")
    assert scores == whole
    assert not state.exists()


def epochs_in(state: Path) -> int:
    if not state.exists():
        return 0
    with safe_open(state, framework="np") as file:
        return len(json.loads(file.metadata()["progress"])["curves"]["pool"])


def test_features_that_are_all_zero_give_the_first_of_the_likeliest_classes(
    tmp_path: Path,
) -> None:
    train, test = cache(tmp_path / "a", 105, 1, zero=True), cache(tmp_path / "b", 200, 2, zero=True)
    for batchnorm in (True, False):
        scores = run(train, test, batchnorm=batchnorm, epochs=100, batch=105)
        # Nothing but the bias can learn: classes 0 to 4, of 11 images each, before the others.
        assert [score.value for score in scores] == [10.0, 50.0, 10.0, 50.0]
        assert scores[0].detail["curve"][-1] == 10.0


def test_twenty_images_are_enough(tmp_path: Path) -> None:
    train, test = cache(tmp_path / "train", 20, 1), cache(tmp_path / "test", 20, 2)
    scores = run(train, test, batch=256, epochs=20)  # one short batch an epoch
    assert scores[0].value >= 50 and all(0 <= score.value <= 100 for score in scores)
    assert len(scores[0].detail["curve"]) == 20
    ragged = run(train, test, batch=19)  # and a batch of one image
    assert all(np.isfinite(score.detail["loss"]).all() for score in ragged)


def test_a_share_of_the_labels_says_so_and_scores_less(
    two: tuple[FeatureCache, FeatureCache],
) -> None:
    share = run(*two, subset=0.1, epochs=20)
    assert share[0].detail["subset"]["images"] == 60
    assert share[0].detail["subset"]["images_a_class"] == [6, 6]
    assert share[0].value < run(*two, epochs=20)[0].value


def test_the_seed_matters_and_nothing_else_does(two: tuple[FeatureCache, FeatureCache]) -> None:
    assert run(*two, seed=1) == run(*two, seed=1)
    assert run(*two, seed=1)[2].detail["loss"] != run(*two)[2].detail["loss"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_learns_the_same(two: tuple[FeatureCache, FeatureCache]) -> None:
    scores = [
        evaluate_linear(*two, settings(), PartialResults(None, {}), lambda _: None, device=device)
        for device in ("cpu", "cuda")
    ]
    for ours, theirs in zip(*scores, strict=True):
        assert theirs.detail["loss"] == pytest.approx(ours.detail["loss"], rel=1e-3)
        assert theirs.value == pytest.approx(ours.value, abs=2)


def test_the_optimum_follows_where_it_is_asked_for(
    tmp_path: Path, two: tuple[FeatureCache, FeatureCache]
) -> None:
    scores = run(*two, tmp_path / "out", optimum=True, strengths=(1e-2, 1e-3))
    assert scores[:4] == run(*two, optimum=False)
    assert [(s.name, s.metric) for s in scores[4:]] == [
        (f"{layer} optimum", metric) for layer in LAYERS for metric in ("top1", "top5")
    ]
    assert abs(scores[4].value - scores[0].value) < 5  # SGD comes near
    assert run(*two, tmp_path / "out", optimum=True, strengths=(1e-2, 1e-3)) == scores


def test_layers_that_were_pooled_in_another_way_are_refused(
    tmp_path: Path, two: tuple[FeatureCache, FeatureCache]
) -> None:
    other = write_cache(
        tmp_path / "other",
        features={name: np.zeros((10, info.dim)) for name, info in LAYERS.items()},
        labels=np.arange(10),
        fingerprint={},
        class_names=tuple("abcdefghij"),
    )
    with pytest.raises(MismatchError, match=r"layer 'layer1': train has .* extract both"):
        run(two[0], other)


def test_one_class_is_no_problem_to_solve(tmp_path: Path) -> None:
    one = write_cache(
        tmp_path / "one",
        features={name: np.zeros((10, info.dim)) for name, info in LAYERS.items()},
        labels=np.full(10, 3),
        fingerprint={},
        layers=LAYERS,
    )
    with pytest.raises(BadDataError, match="all images are of one class"):
        run(one, one)
