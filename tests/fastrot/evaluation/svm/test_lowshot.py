"""The low-shot protocol on thumbnails of photos, beside LinearSVC run as published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from fastrot.errors import BadDataError
from fastrot.evaluation.metrics import average_precision
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import EvalConfig, load_protocol
from fastrot.evaluation.result import Score
from fastrot.evaluation.svm.draws import draw_signs
from fastrot.evaluation.svm.lowshot import evaluate_lowshot
from fastrot.evaluation.svm.voc07 import SAME_AP
from fastrot.features.cache import FeatureCache
from tests.fastrot.evaluation.photo_caches import photo_cache, several, thumbnails

CLASSES, EACH = 4, 50
COSTS = [1.0, 0.0625, 1e-4]


@pytest.fixture(scope="module")
def caches(
    tmp_path_factory: pytest.TempPathFactory, test_data: Callable[[str], Path]
) -> tuple[FeatureCache, FeatureCache]:
    root = tmp_path_factory.mktemp("lowshot")
    photos = test_data("imagenette-128") / "train"
    labels = several(np.repeat(np.arange(CLASSES), EACH), CLASSES)
    return (
        photo_cache(root / "train", thumbnails(photos, EACH, CLASSES), labels),
        photo_cache(root / "test", thumbnails(photos, EACH, CLASSES, skip=EACH), labels),
    )


def protocol(*overrides: str) -> EvalConfig:
    few = ["features.layers=[layer3]", f"svm.costs={COSTS}", "lowshot.draws=2"]
    return load_protocol("voc07-lowshot", [*few, "lowshot.shots=[1, 8]", *overrides])


def test_it_is_what_linear_svc_gives(caches: tuple[FeatureCache, FeatureCache]) -> None:
    train, test = caches
    scores = evaluate_lowshot(train, test, protocol(), PartialResults(None, {}), lambda _: None)
    assert [score.name for score in scores] == ["1-shot layer3", "8-shot layer3"]
    x, x_test = (
        np.float64(c.features("layer3")) / (np.linalg.norm(np.float64(c.features("layer3")), axis=1)
        + 1e-5)[:, None] for c in caches
    )  # fmt: skip
    for score, shots in zip(scores, (1, 8), strict=True):
        table = np.empty((len(COSTS), 2, CLASSES))
        for draw in range(2):
            signs = draw_signs(train.labels, shots, draw, negatives=19, seed=0)
            for c in range(CLASSES):
                used = signs[:, c] != 0
                for i, cost in enumerate(COSTS):
                    peer = LinearSVC(
                        C=cost, class_weight={1: 2, -1: 1}, tol=1e-8, max_iter=100_000
                    ).fit(x[used], signs[used, c])
                    table[i, draw, c] = average_precision(
                        test.labels[:, c], peer.decision_function(x_test), "voc2010"
                    )[0]
        by_draw = 100 * table.mean(axis=2)
        best = by_draw.mean(axis=1).argmax()
        assert score.value == pytest.approx(by_draw.mean(axis=1)[best], abs=0.02)
        assert score.detail["cost"] == COSTS[best]
        np.testing.assert_allclose(score.detail["draws"], by_draw[best], atol=0.05)
        assert score.detail["selected_on"] == "test" and score.detail["largest_gap"] <= 1e-6


@pytest.mark.parametrize("solver", ["sklearn", "cyanure"])
def test_the_map_of_every_draw_is_the_same_whoever_solves(
    caches: tuple[FeatureCache, FeatureCache], solver: str
) -> None:
    for cost in COSTS:
        one_cost = f"svm.costs=[{cost}]"
        ours, theirs = (
            evaluate_lowshot(
                *caches,
                protocol(one_cost, f"svm.solver={name}", "svm.tolerance=1e-8"),
                PartialResults(None, {}),
                lambda _: None,
            )
            for name in ("fastrot", solver)
        )
        for own, other in zip(ours, theirs, strict=True):
            assert (own.detail["solver"], other.detail["solver"]) == ("fastrot", solver)
            assert own.detail["cost"] == other.detail["cost"] == cost
            np.testing.assert_allclose(
                other.detail["draws"], own.detail["draws"], rtol=0, atol=100 * SAME_AP
            )
            assert 0 <= other.detail["largest_gap"] <= 1e-5


def test_a_library_chooses_the_cost_that_is_best_on_the_test_set(
    caches: tuple[FeatureCache, FeatureCache],
) -> None:
    def scores(*overrides: str) -> list[Score]:
        config = protocol("svm.solver=sklearn", *overrides)
        return evaluate_lowshot(*caches, config, PartialResults(None, {}), lambda _: None)

    of_cost = {cost: scores(f"svm.costs=[{cost}]") for cost in COSTS}
    for number, score in enumerate(scores()):
        best = max(COSTS, key=lambda cost: of_cost[cost][number].value)
        assert score.detail["cost"] == best
        assert score.value == pytest.approx(of_cost[best][number].value)


def test_a_killed_run_goes_on_with_the_same_numbers(
    caches: tuple[FeatureCache, FeatureCache], tmp_path: Path
) -> None:
    parts = PartialResults(tmp_path / "j", {})

    def killed(text: str) -> None:
        raise KeyboardInterrupt(text)

    with pytest.raises(KeyboardInterrupt):
        evaluate_lowshot(*caches, protocol(), parts, killed)
    assert parts.get("1-shot layer3") and not parts.get("8-shot layer3")
    said: list[str] = []
    resumed = evaluate_lowshot(*caches, protocol(), parts, said.append)
    assert len(said) == 1, "what was done is not done again"
    whole = evaluate_lowshot(*caches, protocol(), PartialResults(None, {}), said.append)
    assert [s.to_json() for s in resumed] == [s.to_json() for s in whole]


def test_a_class_with_too_few_positives_is_named(
    caches: tuple[FeatureCache, FeatureCache],
) -> None:
    with pytest.raises(BadDataError, match="fewer than the 64 that 64 shots need"):
        few = protocol("lowshot.shots=[64]")
        evaluate_lowshot(*caches, few, PartialResults(None, {}), lambda _: None)


def test_all_zero_features_rank_everything_alike(tmp_path: Path) -> None:
    labels = several(np.repeat(np.arange(2), 20), 2)
    zeros = np.zeros((40, 8), np.float32)
    caches = [photo_cache(tmp_path / part, zeros, labels) for part in ("train", "test")]
    (score, _) = evaluate_lowshot(*caches, protocol(), PartialResults(None, {}), lambda _: None)
    counted = labels != 0
    chance = [average_precision(labels[:, c], np.zeros(40), "voc2010")[0] for c in range(2)]
    assert counted.any() and score.value == pytest.approx(100 * np.mean(chance))
