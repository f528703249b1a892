"""The optimum on a layer: its objective, how its strength is chosen, what survives a kill."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from fastrot.data.images.decode import decode_image
from fastrot.errors import BadDataError, NonFiniteError, UsageError
from fastrot.evaluation.linear import optimum
from fastrot.evaluation.linear.optimum import SAME_TOP1, hold_out, optimum_scores
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import EvalConfig, LinearConfig
from fastrot.evaluation.result import Score
from fastrot.features.cache import FeatureCache, LayerInfo
from tests.fastrot.features.written_cache import write_cache

STRENGTHS = (1e-1, 1e-2, 1e-3)
LAYERS = ("coarse", "fine")
CLASSES = 4


def write(path: Path, pixels: NDArray[Any], labels: NDArray[Any], **options: Any) -> FeatureCache:
    """Photos of shape (n, 16, 16, 3) as two layers of three channels: means of 4 x 4, of 2 x 2."""
    n, features, infos = len(pixels), {}, {}
    for layer, grid in zip(LAYERS, (4, 8), strict=True):
        size = 16 // grid
        pooled = pixels.reshape(n, grid, size, grid, size, 3).mean(axis=(2, 4))
        features[layer] = pooled.transpose(0, 3, 1, 2).reshape(n, -1) / 64
        infos[layer] = LayerInfo(3, grid, 3 * grid**2, "mean")
    return write_cache(
        path,
        features=features,
        labels=labels,
        fingerprint={"of": "pixels"},
        layers=infos,
        **options,
    )


@pytest.fixture(scope="module")
def photos(test_data: Callable[[str], Path]) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """40 training and 15 test photos of each of 4 classes."""
    found = {}
    for part, each in (("train", 40), ("val", 15)):
        pixels, labels = [], []
        root = test_data("imagenette-128") / part
        for label, folder in enumerate(sorted(root.iterdir())[:CLASSES]):
            for path in sorted(folder.iterdir())[:each]:
                image = decode_image(path.read_bytes(), apply_exif=True)
                pixels.append(image[:128:8, :128:8].astype(np.float64))
                labels.append(label)
        found[part] = np.stack(pixels), np.array(labels)
    return found


@pytest.fixture
def caches(photos, tmp_path) -> tuple[FeatureCache, FeatureCache]:
    return write(tmp_path / "train", *photos["train"]), write(tmp_path / "val", *photos["val"])


def run(
    caches: tuple[FeatureCache, FeatureCache],
    *,
    layers: tuple[str, ...] = ("coarse",),
    ids: NDArray[np.int64] | None = None,
    parts: PartialResults | None = None,
    say: Callable[[str], None] = lambda _: None,
    **linear: Any,
) -> list[Score]:
    config = EvalConfig(
        protocol="linear",
        kind="linear",
        linear=LinearConfig(**{"strengths": STRENGTHS, "optimum": True, **linear}),
    )
    rows = np.arange(caches[0].num_samples) if ids is None else ids
    parts = parts or PartialResults(None, {})
    return optimum_scores(*caches, layers, rows, config, parts, say, device="cpu")


def standardised(cache: FeatureCache, like: FeatureCache, layer: str) -> NDArray[np.float64]:
    """From the definition: each channel by its mean and variance in ``like``."""
    maps, reference = (
        np.asarray(c.features(layer), np.float64).reshape(c.num_samples, 3, -1)
        for c in (cache, like)
    )
    mean = reference.mean(axis=(0, 2), keepdims=True)
    variance = reference.var(axis=(0, 2), ddof=1, keepdims=True)
    return ((maps - mean) / np.sqrt(variance + 1e-5)).reshape(len(maps), -1)


def test_scores_are_those_of_scikit_learn_on_standardised_features(caches) -> None:
    train, test = caches
    scores = run(caches, layers=LAYERS)
    assert [(s.name, s.metric, s.layer) for s in scores] == [
        (f"{layer} optimum", metric, layer) for layer in LAYERS for metric in ("top1", "top5")
    ]
    for top1, top5 in zip(scores[::2], scores[1::2], strict=True):
        x, x_test = (standardised(cache, train, top1.layer) for cache in caches)
        strength = top1.detail["strength"]
        peer = LogisticRegression(C=1 / (strength * len(x)), tol=1e-8, max_iter=20_000)
        peer.fit(x, train.labels)
        loss = -peer.predict_log_proba(x)[np.arange(len(x)), train.labels].mean()
        objective = loss + 0.5 * strength * (peer.coef_**2).sum()
        assert top1.detail["objective"] == pytest.approx(objective, rel=2e-6)
        assert 0 <= top1.detail["gap"] <= 1e-6
        rights = (peer.predict(x_test) == test.labels).sum()
        assert abs(top1.value / 100 * len(x_test) - rights) <= 1  # a near tie may fall either way
        assert top5.value == 100.0  # there are four classes


def test_the_strength_is_the_best_of_the_table_and_test_labels_do_not_matter(
    caches, photos, tmp_path
) -> None:
    first = run(caches)[0]
    table = first.detail["validation"]
    assert [row["strength"] for row in table] == list(STRENGTHS)
    best = max(row["top1"] for row in table)
    assert first.detail["strength"] == next(r["strength"] for r in table if r["top1"] == best)
    assert first.detail["held_out"] == 4 * CLASSES
    other = write(tmp_path / "other", photos["val"][0], (photos["val"][1] + 1) % CLASSES)
    again = run((caches[0], other))[0]
    assert again.detail == first.detail
    assert again.value != first.value


def test_the_held_out_part_is_balanced_and_no_matter_of_order() -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 20, 3, 1])
    ids = np.arange(len(labels)) + 1000
    chosen = hold_out(labels, ids, seed=7)
    assert np.bincount(labels[chosen], minlength=4).tolist() == [5, 2, 1, 0]
    order = np.random.default_rng(0).permutation(len(ids))
    assert (hold_out(labels[order], ids[order], seed=7) == chosen[order]).all()
    assert (hold_out(labels, ids, seed=8) != chosen).any()


@pytest.mark.parametrize("solver", ["torch", "sklearn", "cyanure"])
def test_libraries_find_the_same_optimum(caches, solver) -> None:
    said: list[str] = []
    ours, theirs = run(caches)[0], run(caches, solver=solver, say=said.append)[0]
    assert (ours.detail["solver"], theirs.detail["solver"]) == ("fastrot", solver)
    assert theirs.value == pytest.approx(ours.value, abs=SAME_TOP1)
    assert [line.split(":")[0] for line in said] == [
        *(f"strength {strength:g} by {solver}" for strength in STRENGTHS),
        f"strength {ours.detail['strength']:g} by {solver}",
        "coarse optimum",
    ]
    for a, b in zip(
        [ours.detail, *ours.detail["validation"]],
        [theirs.detail, *theirs.detail["validation"]],
        strict=True,
    ):
        assert a["strength"] == b["strength"]
        assert a["objective"] == pytest.approx(b["objective"], rel=1e-5)
        assert a.get("top1", 0) == pytest.approx(b.get("top1", 0), abs=SAME_TOP1)


def test_an_optimum_that_is_not_finite_is_refused(caches, monkeypatch) -> None:
    def broken(*arguments, **options):
        return replace(solve_by_library(*arguments, **options), gap=math.nan)

    solve_by_library = optimum.solve_by_library
    monkeypatch.setattr(optimum, "solve_by_library", broken)
    with pytest.raises(NonFiniteError, match=r"no finite solution; use linear\.solver=fastrot"):
        run(caches, solver="sklearn")


def test_cyanure_that_is_not_installed_is_one_clear_error(caches, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cyanure.estimators", None)
    with pytest.raises(UsageError, match=r"pip install cyanure, or set linear\.solver=fastrot"):
        run(caches, solver="cyanure")


def test_finished_layers_survive_a_kill(caches, tmp_path) -> None:
    whole = run(caches, layers=LAYERS)

    class KilledError(Exception):
        pass

    def die(_: str) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        run(caches, layers=LAYERS, parts=PartialResults(tmp_path / "j", {}), say=die)
    said: list[str] = []
    again = run(caches, layers=LAYERS, parts=PartialResults(tmp_path / "j", {}), say=said.append)
    assert again == whole
    assert [line.split(":")[0] for line in said] == ["fine optimum"]


def test_only_the_given_rows_count(caches, photos, tmp_path) -> None:
    ids = np.arange(0, caches[0].num_samples, 2)
    part = write(tmp_path / "part", photos["train"][0][ids], photos["train"][1][ids])
    of_part = run((part, caches[1]), strengths=(1e-2,))
    of_rows = run(caches, ids=ids, strengths=(1e-2,))
    assert of_rows == of_part
    assert of_rows[0].detail["images"] == len(ids)
    assert of_rows[0].detail["validation"] == []


def test_the_first_crop_is_taken(caches, photos, tmp_path) -> None:
    plain = {layer: np.asarray(caches[0].features(layer)) for layer in LAYERS}
    crops = write_cache(
        tmp_path / "crops",
        features={name: np.stack([rows, rows[::-1]], axis=1) for name, rows in plain.items()},
        labels=photos["train"][1],
        fingerprint={},
        layers=caches[0].layers,
    )
    a, b = run(caches, strengths=(1e-2,))[0], run((crops, caches[1]), strengths=(1e-2,))[0]
    assert a.value == b.value
    assert a.detail["objective"] == b.detail["objective"]
    assert (a.detail["mode"], b.detail["mode"]) == ("test transform", "first of 2 crops")


def test_without_batch_norm_features_stay_as_they_are(caches) -> None:
    (score, _) = run(caches, strengths=(1e-2,), batchnorm=False)
    x, y = np.asarray(caches[0].features("coarse"), np.float64), caches[0].labels
    peer = LogisticRegression(C=100 / len(x), tol=1e-8, max_iter=20_000).fit(x, y)
    loss = -peer.predict_log_proba(x)[np.arange(len(x)), y].mean()
    objective = loss + 0.5e-2 * (peer.coef_**2).sum()
    assert score.detail["objective"] == pytest.approx(objective, rel=2e-6)


def test_too_little_to_choose_from_is_named(caches) -> None:
    first_of_each = np.array([list(caches[0].labels).index(c) for c in range(CLASSES)])
    with pytest.raises(BadDataError, match=r"no class has two samples.*linear\.strengths"):
        run(caches, ids=first_of_each)
    assert run(caches, ids=first_of_each, strengths=(1e-2,))[0].detail["held_out"] == 0


def test_a_class_without_training_samples_is_never_the_answer(caches) -> None:
    labels = np.asarray(caches[0].labels)
    scores = run(caches, ids=np.flatnonzero(labels != 2), strengths=(1e-2,))
    test = np.asarray(caches[1].labels)
    assert 0 < scores[0].value <= 100 * (test != 2).mean()
    assert torch.isfinite(torch.tensor(scores[0].detail["objective"]))


def test_several_labels_a_sample_are_refused(caches, tmp_path) -> None:
    many = write_cache(
        tmp_path / "many",
        features={"coarse": np.ones((3, 2))},
        labels=np.ones((3, 4), np.int8),
        fingerprint={},
    )
    with pytest.raises(BadDataError, match="one class per sample"):
        run((many, caches[1]))
