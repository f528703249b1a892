"""kNN: a case by hand, scikit-learn's neighbours and votes on real photos, kills, bad data."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from fastrot.data.images.decode import decode_image
from fastrot.errors import BadDataError, FastrotError, MismatchError, UsageError
from fastrot.evaluation import knn
from fastrot.evaluation.knn import evaluate_knn, vote
from fastrot.evaluation.metrics import label_ranks
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import EvalConfig, load_protocol
from fastrot.evaluation.result import Score
from fastrot.features.cache import FeatureCache
from tests.fastrot.features.written_cache import write_cache

QUIET = PartialResults(None, {})


def cache(path: Path, features: Any, labels: Any, **options: Any) -> FeatureCache:
    return write_cache(
        path,
        features={"pool": np.asarray(features)},
        labels=np.asarray(labels),
        fingerprint={"made": path.name},
        **options,
    )


def config(*ks: int, temperature: float = 0.07) -> EvalConfig:
    return load_protocol("knn", [f"knn.k={list(ks)}", f"knn.temperature={temperature}"])


def run(train: FeatureCache, test: FeatureCache, settings: EvalConfig) -> dict[str, float]:
    scores = evaluate_knn(train, test, settings, QUIET, lambda _: None)
    return {f"{score.name} {score.metric}": score.value for score in scores}


@pytest.fixture(scope="module")
def photos(
    test_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[FeatureCache, FeatureCache]:
    """Colour thumbnails of 600 and 200 photos in 10 classes as features."""
    caches = []
    for split, number in (("train", 60), ("val", 20)):
        rows, labels = [], []
        for label, folder in enumerate(sorted((test_data("imagenette-128") / split).iterdir())):
            for path in sorted(folder.iterdir())[:number]:
                pixels = decode_image(path.read_bytes(), apply_exif=True)[:96:6, :96:6]
                rows.append(pixels.reshape(-1).astype(np.float32) - 100)
                labels.append(label)
        caches.append(cache(tmp_path_factory.mktemp("knn") / split, rows, labels))
    return caches[0], caches[1]


# --- scores ---------------------------------------------------------------------------------


def test_a_case_by_hand(tmp_path: Path) -> None:
    # Similarities to the one query (1, 0): 1.0 (class 2), 0.8 (0), 0.8 (0), 0.6 (1), 0 (1).
    bank = [[3, 0], [4, 3], [8, -6], [3, 4], [0, 2]]
    train = cache(tmp_path / "train", bank, [2, 0, 0, 1, 1])
    for label, expected in (
        # T = 1: votes e^1.0 = 2.72 for class 2 against 2 e^0.8 = 4.45 for class 0 and
        # e^0.6 + e^0 = 2.82 for class 1.
        (0, {"k=1 top1": 0, "k=3 top1": 100, "k=4 top1": 100, "k=5 top1": 100}),
        (1, {"k=1 top1": 0, "k=3 top1": 0, "k=4 top1": 0, "k=5 top1": 0}),
        (2, {"k=1 top1": 100, "k=3 top1": 0, "k=4 top1": 0, "k=5 top1": 0}),
    ):
        test = cache(tmp_path / f"test{label}", [[7, 0]], [label])
        found = run(train, test, config(1, 3, 4, 5, temperature=1.0))
        assert {name: found[name] for name in expected} == expected
        assert found["k=1 top5"] == found["k=1 top1"]  # the first k, where k < 5
        assert found["k=5 top5"] == 100
    # A sharp temperature lets the nearest one decide: e^(0.2 / 0.07) = 17 > 2.
    test = cache(tmp_path / "sharp", [[7, 0]], [2])
    assert run(train, test, config(5))["k=5 top1"] == 100


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_predictions_are_those_of_scikit_learns_neighbours(
    photos: tuple[FeatureCache, FeatureCache], temperature: float
) -> None:
    train, test = photos
    found = run(train, test, config(10, 20, 100, 200, temperature=temperature))
    for k in (10, 20, 100, 200):
        peer = KNeighborsClassifier(
            k,
            weights=lambda distances: np.exp((1 - distances) / temperature),
            algorithm="brute",
            metric="cosine",
        ).fit(train.features("pool").astype(np.float64), train.labels)
        shares = peer.predict_proba(test.features("pool").astype(np.float64))
        ranked = np.argsort(-shares, axis=1, kind="stable")
        right = ranked == test.labels[:, None]
        assert found[f"k={k} top1"] == pytest.approx(100 * right[:, 0].mean())
        assert found[f"k={k} top5"] == pytest.approx(100 * right[:, :5].any(axis=1).mean())
    assert found["k=20 top1"] > 15  # of 10 classes: the features say something


def test_votes_and_hits_break_ties_to_the_lower_class() -> None:
    similarities = np.full((1, 4), 0.5, np.float32)
    votes = vote(similarities, np.array([[3, 1, 3, 1]]), k=4, classes=5, temperature=0.07)
    assert votes.tolist() == [[0, 2, 0, 2, 0]]
    ranks = [int(label_ranks(np.array([c]), votes)[0]) for c in range(5)]
    hits = [[int(rank < top) for rank in ranks] for top in (1, 2, 3, 5)]
    assert hits == [[0, 1, 0, 0, 0], [0, 1, 0, 1, 0], [1, 1, 0, 1, 0], [1, 1, 1, 1, 1]]


def test_a_tiny_temperature_does_not_overflow() -> None:
    similarities = np.array([[1.0, 0.9, -1.0]], np.float32)
    votes = vote(similarities, np.array([[1, 0, 0]]), k=3, classes=2, temperature=1e-6)
    assert votes.tolist() == [[0, 1]]


def test_images_of_zeros_are_nearest_to_the_first_ones(tmp_path: Path) -> None:
    features = np.array([[1, 1], [2, 1], [-1, 0]])
    train = cache(tmp_path / "train", features, [1, 0, 0])
    test = cache(tmp_path / "test", np.zeros((2, 2)), [1, 0])
    assert run(train, test, config(1, 3)) == {
        **{"k=1 top1": 50, "k=1 top5": 50},  # all similarities are 0: image 0, of class 1
        **{"k=3 top1": 50, "k=3 top5": 100},
    }


def test_several_layers_are_told_apart(tmp_path: Path) -> None:
    layers = {"layer1": np.eye(4), "pool": np.eye(4)[:, :2] + 0.1}
    made = [
        write_cache(
            tmp_path / name, features=layers, labels=np.arange(4), fingerprint={"made": name}
        )
        for name in ("train", "test")
    ]
    settings = load_protocol("knn", ["knn.k=[1]", "features.layers=[layer1,pool]"])
    scores = evaluate_knn(made[0], made[1], settings, QUIET, lambda _: None)
    assert [(s.name, s.metric, s.layer) for s in scores] == [
        *(("k=1 layer1", "top1", "layer1"), ("k=1 layer1", "top5", "layer1")),
        *(("k=1 pool", "top1", "pool"), ("k=1 pool", "top5", "pool")),
    ]
    assert scores[0].value == 100


# --- kills ----------------------------------------------------------------------------------


def test_a_rerun_continues_and_gives_the_same(
    photos: tuple[FeatureCache, FeatureCache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = photos
    settings, fingerprint = config(10, 20), {"protocol": "knn"}

    def evaluate(folder: str) -> list[Score]:
        parts = PartialResults(tmp_path / folder, fingerprint)
        return evaluate_knn(train, test, settings, parts, lambda _: None, unit=64)

    whole = evaluate("whole")
    search, searched = knn.nearest_rows, []

    def killed(queries: NDArray[Any], *arguments: Any, **options: Any) -> Any:
        searched.append(len(queries))
        if len(searched) == 3:
            raise KeyboardInterrupt
        return search(queries, *arguments, **options)

    monkeypatch.setattr(knn, "nearest_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate("killed")
    assert evaluate("killed") == whole
    assert searched == [64, 64, 64, 64, 8]  # the third one was done again, the first two not
    searched.clear()
    assert evaluate("killed") == whole and searched == []


# --- bad data -------------------------------------------------------------------------------


def small(path: Path, images: int = 20, labels: Any = None, **options: Any) -> FeatureCache:
    features = np.random.default_rng(0).normal(size=(images, 8))
    labels = np.arange(images) % 4 if labels is None else labels
    return cache(path, features, labels, **options)


def test_twenty_images_are_enough(tmp_path: Path) -> None:
    train = small(tmp_path / "train")
    found = run(train, train, config(1, 20))
    assert found["k=1 top1"] == 100  # each image is its own neighbour
    assert 0 <= found["k=20 top1"] <= found["k=20 top5"] == 100


@pytest.mark.parametrize(
    ("train", "test", "error", "message"),
    [
        ({}, {"labels": [-1] * 20}, BadDataError, "20 of 20 images have no label"),
        ({"labels": [0] * 19 + [-1]}, {}, BadDataError, r"1 of 20 .* \(first: number 19\)"),
        ({"labels": np.ones((20, 3), np.int8)}, {}, BadDataError, "several of 3 classes"),
        ({"class_names": ("a", "b")}, {}, BadDataError, "label 3 is not one of the 2 named"),
        (
            {"class_names": ("a", "b", "c", "d")},
            {"class_names": ("a", "x", "c", "d")},
            MismatchError,
            r"class 'x' of .* is not among the 4 of",
        ),
        (
            {"class_names": ("a", "b", "c", "d")},
            {"class_names": ("a", "b", "c", "d", "e")},
            MismatchError,
            "class 'e' of .* is not among the 4 of",
        ),
        ({"images": 9}, {}, UsageError, r"10 neighbours are more than the 9 images .* set knn.k"),
        ({}, {"images": 0}, BadDataError, "test: no images"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path,
    train: dict[str, Any],
    test: dict[str, Any],
    error: type[FastrotError],
    message: str,
) -> None:
    made = small(tmp_path / "train", **train), small(tmp_path / "test", **test)
    with pytest.raises(error, match=message):
        run(*made, config(1, 10))


def test_other_dimensions_and_crops_are_refused(tmp_path: Path) -> None:
    train = small(tmp_path / "train")
    other = cache(tmp_path / "other", np.ones((3, 7)), [0, 1, 2])
    with pytest.raises(MismatchError, match=r"8 values in .* and 7 in"):
        run(train, other, config(1))
    crops = cache(tmp_path / "crops", np.ones((3, 2, 8)), [0, 1, 2])
    with pytest.raises(BadDataError, match="2 random crops per image"):
        run(train, crops, config(1))


def test_examples_in_docstrings_hold() -> None:
    results = doctest.testmod(knn)
    assert results.attempted > 0 and results.failed == 0
