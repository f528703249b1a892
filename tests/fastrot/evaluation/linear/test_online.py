"""The probe on online crops of real photos, whole: learning, kills, the gap to cached crops."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastrot.config import ModelConfig
from fastrot.data.open import open_dataset
from fastrot.data.subset import DatasetSubset, spread
from fastrot.errors import BadDataError, MismatchError, UsageError
from fastrot.evaluation.extract import protocol_spec, scoring_crop
from fastrot.evaluation.linear.cached import evaluate_linear
from fastrot.evaluation.linear.online import OnlineSpec, evaluate_linear_online
from fastrot.evaluation.linear.training import mode_gap
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import EvalConfig
from fastrot.evaluation.result import Score
from fastrot.features.cache import FeatureCache
from fastrot.features.extract import ExtractOptions, extract_features
from fastrot.features.spec import FeatureSpec
from fastrot.models.backbones import build_model
from fastrot.weights.load import Backbone, load_backbone, weights_digest
from tests.program import start_python

CPU = torch.device("cpu")
MODEL = ModelConfig(name="resnet18", width=8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A rerun is to have as many as the first start: other numbers give other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def backbone_at(path: Path) -> Backbone:
    if not path.exists():
        save_file(build_model(MODEL, seed=0).backbone.state_dict(), path)
    return load_backbone(path, model=MODEL)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return backbone_at(tmp_path_factory.mktemp("weights") / "backbone.safetensors")


def photos(root: Path) -> tuple[DatasetSubset, DatasetSubset]:
    return spread(open_dataset(root / "train"), 200), spread(open_dataset(root / "val"), 100)


@pytest.fixture(scope="module")
def two(test_data: Callable[[str], Path]) -> tuple[DatasetSubset, DatasetSubset]:
    return photos(test_data("imagenette-128"))


def settings(augment: str = "rrc_jitter_lighting", **linear: Any) -> EvalConfig:
    linear = {"epochs": 3, "milestones": (2,), "batch": 64, "augment": augment, **linear}
    features = {"layers": ("layer1", "pool"), "resolution": 32, "resize": 36}
    return EvalConfig.model_validate(
        {"protocol": "linear", "kind": "linear", "features": features, "linear": linear}
    )


def spec_of(
    backbone: Backbone, two: tuple[Any, Any], config: EvalConfig, **more: Any
) -> OnlineSpec:
    return OnlineSpec.settle(backbone, *two, config, CPU, **more)


def online(
    backbone: Backbone,
    two: tuple[Any, Any],
    config: EvalConfig,
    folder: Path | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
    test_cache: Path | None = None,
    workers: int | None = None,
    **more: Any,
) -> list[Score]:
    return evaluate_linear_online(
        *(backbone, *two, spec_of(backbone, two, config, **more), config),
        *(PartialResults(folder, {}), say),
        options=ExtractOptions(workers=workers, progress=False),
        test_cache=test_cache,
        save_seconds=0,
    )


def cached(
    backbone: Backbone, samples: Any, out: Path, config: EvalConfig, **more: Any
) -> FeatureCache:
    spec = protocol_spec(config, backbone, samples, CPU, **more)
    return extract_features(backbone, samples, out, spec, ExtractOptions(progress=False))


def test_online_crops_teach_what_the_layers_hold(
    backbone: Backbone, two: tuple[DatasetSubset, DatasetSubset], tmp_path: Path
) -> None:
    before, said = weights_digest(backbone.model), list[str]()
    scores = online(backbone, two, settings(epochs=8, milestones=(6,)), tmp_path, say=said.append)
    assert [(s.name, s.metric) for s in scores[:3]] == [
        ("layer1", "top1"),
        ("layer1", "top5"),
        ("pool", "top1"),
    ]
    assert scores[0].value >= 20  # of ten classes; random features, 200 photos
    assert scores[0].detail["loss"][-1] < scores[0].detail["loss"][0]
    assert scores[0].detail["mode"] == "augmented"
    assert scores[0].detail["augment"] == "rrc_jitter_lighting"
    assert weights_digest(backbone.model) == before
    assert said[0].startswith("linear probe: 200 images per epoch, decoded by the loader ")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["identity.json", "linear-augmented.json", "test-features"]
    assert online(backbone, two, settings(epochs=8, milestones=(6,)), tmp_path) == scores


def test_without_augmentation_it_is_the_cached_probe(
    backbone: Backbone, two: tuple[DatasetSubset, DatasetSubset], tmp_path: Path
) -> None:
    """One batch an epoch, so that the order of the samples says nothing."""
    config = settings("none", batch=200)
    caches = []
    for name, samples in zip(("train", "test"), two, strict=True):
        spec = FeatureSpec.settle(
            *(backbone, samples, CPU),
            layers=config.features.layers,
            crop=scoring_crop(config, backbone),
            loader="reference",
        )
        how = ExtractOptions(progress=False)
        caches.append(extract_features(backbone, samples, tmp_path / name, spec, how))
    probed = evaluate_linear(*caches, config, PartialResults(None, {}), lambda _: None)
    scores = online(backbone, two, config, loader="reference", workers=0)
    for ours, theirs in zip(scores, probed, strict=True):
        assert ours.detail["loss"] == pytest.approx(theirs.detail["loss"], rel=2e-3)
        assert ours.value == pytest.approx(theirs.value, abs=2)  # a photo or two: float16


def test_the_gap_to_cached_crops_is_named_by_head(
    backbone: Backbone, two: tuple[DatasetSubset, DatasetSubset], tmp_path: Path
) -> None:
    config = settings("center_random")
    caches = [
        cached(backbone, samples, tmp_path / name, config, crops=crops)
        for name, samples, crops in (("train", two[0], 2), ("test", two[1], 0))
    ]
    scores = evaluate_linear(*caches, config, PartialResults(None, {}), lambda _: None)
    assert scores[0].detail["mode"] == "cached-2"
    augmented = online(backbone, two, config, test_cache=tmp_path / "test")
    gap = mode_gap(augmented, scores)
    assert list(gap) == ["layer1 top1", "layer1 top5", "pool top1", "pool top5"]
    assert gap["pool top1"] == augmented[2].value - scores[2].value


KILLED = """
import sys, time
from pathlib import Path
import torch
sys.path.insert(0, {here!r})
import test_online as t
from fastrot.evaluation.linear import training as linear_training
save = linear_training.save_state
def slow(*arguments):
    save(*arguments)
    time.sleep(0.5)  # so that a kill finds it between two epochs, or in the next
linear_training.save_state = slow
torch.set_num_threads(1)
root = Path({root!r})
backbone, two = t.backbone_at(root / "backbone.safetensors"), t.photos(Path({data!r}))
t.online(backbone, two, t.settings(epochs=9), root / "out")
"""


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_bits(
    two: tuple[DatasetSubset, DatasetSubset], test_data: Callable[[str], Path], tmp_path: Path
) -> None:
    backbone = backbone_at(tmp_path / "backbone.safetensors")
    whole = online(backbone, two, settings(epochs=9), tmp_path / "whole")
    data, here = str(test_data("imagenette-128")), str(Path(__file__).parent)
    code = KILLED.format(here=here, root=str(tmp_path), data=data)
    process = start_python([sys.executable, "-c", code])
    state = tmp_path / "out" / "linear-augmented.safetensors"
    try:
        end = time.monotonic() + 600
        while epochs_in(state) < 2:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 2 <= epochs_in(state) < 9
    said: list[str] = []
    assert online(backbone, two, settings(epochs=9), tmp_path / "out", say=said.append) == whole
    assert any(line.startswith("linear probe: continues after epoch ") for line in said)
    assert not state.exists()


def epochs_in(state: Path) -> int:
    if not state.exists():
        return 0
    with safe_open(state, framework="np") as file:
        return len(json.loads(file.metadata()["progress"])["curves"]["pool"])


def test_twenty_photos_and_a_share_of_the_labels(
    backbone: Backbone, two: tuple[DatasetSubset, DatasetSubset]
) -> None:
    few = DatasetSubset(two[0], np.arange(0, 200, 10)), DatasetSubset(two[1], np.arange(20))
    scores = online(backbone, few, settings(epochs=2, batch=256))
    assert all(0 <= score.value <= 100 for score in scores)
    scores = online(backbone, two, settings(epochs=2, subset=0.1))
    assert scores[0].detail["subset"]["images"] == 20
    assert scores[0].detail["subset"]["images_a_class"] == [2, 2]


def test_the_optimum_is_of_cached_features_and_left_out_with_a_word(
    backbone: Backbone, two: tuple[DatasetSubset, DatasetSubset]
) -> None:
    said: list[str] = []
    scores = online(backbone, two, settings(epochs=1, optimum=True), say=said.append)
    assert said[0].startswith("linear.optimum: left out") and len(scores) == 4


def test_what_cannot_be_probed_says_why(
    backbone: Backbone, two: tuple[DatasetSubset, DatasetSubset]
) -> None:
    train, test = two
    one = DatasetSubset(train, np.flatnonzero(train.labels == 3))
    with pytest.raises(BadDataError, match="all images are of one class"):
        online(backbone, (one, test), settings())
    unlabelled = DatasetSubset(train, np.arange(50))
    unlabelled.labels = np.where(np.arange(50) == 7, -1, unlabelled.labels)
    with pytest.raises(BadDataError, match=r"1 of 50 images have no label"):
        online(backbone, (unlabelled, test), settings())
    with pytest.raises(UsageError, match="layer9"):
        config = settings().model_copy(
            update={"features": settings().features.model_copy(update={"layers": ("layer9",)})}
        )
        online(backbone, two, config)
    with pytest.raises(UsageError, match="loader 'fast' is unknown"):
        online(backbone, two, settings(), loader="fast")


def test_test_features_that_are_there_serve_with_the_layers_they_hold(
    backbone: Backbone, two: tuple[DatasetSubset, DatasetSubset], tmp_path: Path
) -> None:
    config, layers = settings("rrc"), ("layer1", "layer3", "pool")
    cached(backbone, two[1], tmp_path / "test", config, layers=layers)
    scores = online(backbone, two, config, test_cache=tmp_path / "test", test_layers=layers)
    assert scores == online(backbone, two, config)
    with pytest.raises(MismatchError, match="layers"):
        online(backbone, two, config, test_cache=tmp_path / "test")


def test_the_fingerprint_names_what_differs(
    backbone: Backbone, two: tuple[DatasetSubset, DatasetSubset], tmp_path: Path
) -> None:
    fingerprint = spec_of(backbone, two, settings()).fingerprint
    PartialResults(tmp_path, fingerprint)
    PartialResults(tmp_path, spec_of(backbone, two, settings()).fingerprint)
    assert fingerprint["train"]["weights"] == backbone.digest
    config = settings("center_random", seed=1)
    other = spec_of(backbone, (two[0], two[0]), config).fingerprint
    with pytest.raises(MismatchError, match=r"test\.data: ") as caught:
        PartialResults(tmp_path, other)
    for field in ("train.crop.kind: ", "center_random", "train.seed: 0 -> 1"):
        assert field in str(caught.value)
