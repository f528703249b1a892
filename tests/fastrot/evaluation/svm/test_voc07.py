"""VOC07 SVMs on thumbnails of photos: every solver gives the same AP, and the result names it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastrot.errors import NonFiniteError
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import load_protocol
from fastrot.evaluation.result import Score
from fastrot.evaluation.svm import library_fits
from fastrot.evaluation.svm.voc07 import SAME_AP, evaluate_svm
from fastrot.features.cache import FeatureCache
from tests.fastrot.evaluation.photo_caches import photo_cache, several, thumbnails

CLASSES, EACH = 4, 40
COSTS = (1.0, 100.0, 0.01)


@pytest.fixture(scope="module")
def caches(
    tmp_path_factory: pytest.TempPathFactory, test_data: Callable[[str], Path]
) -> tuple[FeatureCache, FeatureCache]:
    root = tmp_path_factory.mktemp("voc07")
    photos = test_data("imagenette-128") / "train"
    labels = several(np.repeat(np.arange(CLASSES), EACH), CLASSES)
    train, test = (
        photo_cache(
            root / part, thumbnails(photos, EACH, CLASSES, skip=skip)[:, ::5].copy(), labels
        )
        for part, skip in (("train", 0), ("test", EACH))
    )
    return train, test


def evaluate(
    caches: tuple[FeatureCache, FeatureCache],
    solver: str,
    costs: tuple[float, ...],
    say: Callable[[str], None] = lambda _: None,
) -> Score:
    changed = [f"svm.solver={solver}", f"svm.costs={list(costs)}", "svm.tolerance=1e-8"]
    config = load_protocol("voc07-svm", [*changed, "features.layers=[layer3]"])
    (score,) = evaluate_svm(*caches, config, PartialResults(None, {}), say)
    return score


@pytest.mark.parametrize(("solver", "costs"), [("sklearn", COSTS), ("cyanure", (1.0, 0.01))])
def test_each_class_has_the_same_ap_at_every_cost_whoever_solves(caches, solver, costs) -> None:
    for cost in costs:
        ours, theirs = (evaluate(caches, name, (cost,)) for name in ("fastrot", solver))
        assert (ours.detail["solver"], theirs.detail["solver"]) == ("fastrot", solver)
        for what in ("ap", "fold_ap"):
            apart = np.abs(np.subtract(ours.detail[what], theirs.detail[what]))
            assert apart.max() <= 100 * SAME_AP, (cost, what)
        assert 0 <= theirs.detail["largest_gap"] <= 1e-5


def test_a_library_chooses_the_cost_by_the_folds_and_says_how_far_it_is(
    caches, monkeypatch
) -> None:
    of_cost = {cost: evaluate(caches, "sklearn", (cost,)).detail for cost in COSTS}
    monkeypatch.setattr(library_fits, "_SAY_SECONDS", -1.0)
    said: list[str] = []
    score = evaluate(caches, "sklearn", COSTS, said.append)
    for c, cost in enumerate(score.detail["costs"]):
        assert cost == max(COSTS, key=lambda cost: of_cost[cost]["fold_ap"][c])
        assert score.detail["ap"][c] == pytest.approx(of_cost[cost]["ap"][c], abs=100 * SAME_AP)
    assert score.value == pytest.approx(np.mean(score.detail["ap"]), abs=1e-3)
    total = len(COSTS) * CLASSES * 4
    assert len(said) == total + 1
    assert said[0].startswith(f"layer3: 1 of {total} SVMs by sklearn, ")
    assert said[-1].startswith(f"layer3: {score.value:.2f} mAP, ")


def test_fits_that_stopped_too_early_are_counted(caches, monkeypatch) -> None:
    solve = library_fits.fit_all

    def stopped(*arguments, **options):
        for fit in solve(*arguments, **options):
            yield fit._replace(gap=1e-3 if fit.problem == 2 else fit.gap)

    monkeypatch.setattr(library_fits, "fit_all", stopped)
    said: list[str] = []
    score = evaluate(caches, "sklearn", (0.01,), said.append)
    assert score.detail["largest_gap"] == 1e-3
    assert "sklearn stopped 1 of 16 SVMs at a duality gap of more than 100 x" in said[0]


def test_a_solution_that_is_not_finite_is_refused(caches, monkeypatch) -> None:
    solve = library_fits.fit_all

    def broken(*arguments, **options):
        for fit in solve(*arguments, **options):
            yield fit._replace(gap=math.nan if fit.problem == 2 else fit.gap)

    monkeypatch.setattr(library_fits, "fit_all", broken)
    with pytest.raises(NonFiniteError, match=r"no finite solution at cost 0\.01; use svm\.solver"):
        evaluate(caches, "sklearn", (0.01,), print)
