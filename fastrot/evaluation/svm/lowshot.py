"""Low-shot VOC07 classification: SVMs on k positives and 19 k negatives per class.

Goyal et al., 2019, as MMSelfSup 0.x runs it: the features, scaling and SVMs of ``voc07.py``, with
five draws for each number of shots. The score is the mean AP on the whole test set (without
difficult images), averaged over the draws, at the single cost for all classes and draws that is
best *on the test set*. Every number therefore says ``selected_on: test``.

Shapes: n training and m test images, C classes, P problems: one per draw and class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.data.classes import match_classes
from fastrot.evaluation.metrics import average_precision, mean_over_classes
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import EvalConfig
from fastrot.evaluation.result import Score
from fastrot.evaluation.svm.draws import Signs, draw_signs, read_targets
from fastrot.evaluation.svm.library_fits import library_fits
from fastrot.evaluation.svm.voc07 import class_signs, solver_device, unit_rows
from fastrot.features.cache import FeatureCache
from fastrot.solvers.gram import Gram
from fastrot.solvers.gram_svm import solve_parts
from fastrot.system.console import Say


def evaluate_lowshot(
    train: FeatureCache, test: FeatureCache, config: EvalConfig, parts: PartialResults, say: Say
) -> list[Score]:
    """Return the test mAP in percent, mean over the draws, by number of shots and layer.

    Args:
        train: features of the training images, with labels of several classes (n, C), or one
            class per image, each of which becomes one problem.
        test: features of the test images, with the same classes.
        config: sections ``features``, ``lowshot`` and ``svm`` (costs, weight, tolerance, solver).
        parts: numbers of shots finished so far.
        say: called with each line for the user.

    Raises:
        BadDataError: labels are missing, or a class has too few positives.
        MismatchError: training and test data differ in classes, or fixed draws are of other images.
        UsageError: a layer is not in the cache, or a fixed draw is missing.
    """
    match = match_classes(train, test)
    labels, test_labels = class_signs(train, match), class_signs(test.translated(match), match)
    shots = config.lowshot.shots
    drawn = {k: _draws(labels, k, config, train) for k in shots}
    scores = []
    for layer in config.features.layers:
        names = {k: f"{k}-shot {layer}" for k in shots}
        records = {k: parts.get(name) for k, name in names.items()}
        done = {k: Score.from_json(record) for k, record in records.items() if record is not None}
        left = [k for k in shots if k not in done]
        if left:
            features = unit_rows(train, layer).to(solver_device())
            rows = unit_rows(test, layer).to(features.device)
            solve = _solver(features, rows, config, say)
        for k in left:
            started = time.monotonic()
            score = _score(names[k], layer, solve, drawn[k], test_labels, config, train)
            parts.put(names[k], score.to_json())
            done[k] = score
            say(f"{names[k]}: {score.value:.2f} mAP, {time.monotonic() - started:.0f} s")
        scores += [done[k] for k in shots]
    return scores


def _draws(labels: NDArray[np.int8], k: int, config: EvalConfig, train: FeatureCache) -> Signs:
    """Return all draws, of shape (draws, n, C)."""
    lowshot = config.lowshot
    if lowshot.targets is not None:
        folder = Path(lowshot.targets)
        draws = [read_targets(folder, k, draw, labels) for draw in range(lowshot.draws)]
    else:
        draws = [
            draw_signs(
                labels,
                k,
                draw,
                negatives=lowshot.negatives,
                seed=lowshot.seed,
                class_names=train.class_names,
            )
            for draw in range(lowshot.draws)
        ]
    return np.stack(draws)


_Solve = Callable[[Signs, str], Iterator[tuple[int, slice, NDArray[np.floating[Any]], float]]]
"""From signs (P, n) and a title: a problem, a slice of costs, test outputs (m, costs), the gap."""


def _solver(
    features: torch.Tensor, test_features: torch.Tensor, config: EvalConfig, say: Say
) -> _Solve:
    """Return a function that solves problems on some training images with ``svm.solver``."""
    svm = config.svm
    if svm.solver != "fastrot":
        test = test_features.double().cpu().numpy()

        def by_library(signs: Signs, title: str) -> Iterator[tuple[int, slice, Any, float]]:
            fits = library_fits(features, signs, svm.costs, svm, title, say)
            for number, fit in enumerate(fits):
                cost = number // len(signs)
                outputs = test @ fit.w[:-1] + fit.w[-1]
                yield fit.problem, slice(cost, cost + 1), outputs[:, None], fit.gap

        return by_library
    gram = Gram(features)
    outputs = features @ test_features.T + 1

    def by_fastrot(signs: Signs, title: str) -> Iterator[tuple[int, slice, Any, float]]:
        for stack in solve_parts(
            gram,
            torch.from_numpy(signs).to(gram.device),
            svm.costs,
            positive_weight=svm.positive_weight,
            tolerance=svm.tolerance,
        ):
            for i, problem in enumerate(stack.problems.tolist()):
                decisions = stack.coefficients[i].float() @ outputs[stack.members[i]]
                yield problem, slice(None), decisions.T.cpu().numpy(), float(stack.gap[i].max())

    return by_fastrot


def _score(
    name: str,
    layer: str,
    solve: _Solve,
    draws: Signs,
    test_labels: NDArray[np.int8],
    config: EvalConfig,
    train: FeatureCache,
) -> Score:
    """Return the score for one number of shots.

    Args:
        name: name of the score.
        layer: layer of the score.
        solve: solver of the SVMs of all draws and classes.
        draws: of shape (draws, n, C).
        test_labels: of shape (m, C).
        config: as for ``evaluate_lowshot``.
        train: source of the class names.
    """
    costs = config.svm.costs
    shape = (len(draws), test_labels.shape[1])
    precision = np.empty((len(costs), *shape))
    gap = 0.0
    signs = draws.transpose(0, 2, 1).reshape(-1, draws.shape[1])
    for problem, some, decisions, of_problem in solve(signs, name):
        draw, c = divmod(problem, shape[1])
        precision[some, draw, c] = average_precision(test_labels[:, c], decisions, "voc2010")
        gap = max(gap, of_problem)
    by_draw = mean_over_classes(precision.transpose(2, 0, 1), train.class_names)  # (costs, draws)
    best = int(by_draw.mean(axis=1).argmax())
    values = 100 * by_draw[best]
    return Score(
        name=name,
        metric="mAP",
        value=float(values.mean()),
        layer=layer,
        detail={
            "draws": [round(value, 4) for value in values.tolist()],
            "lowest": round(float(values.min()), 4),
            "highest": round(float(values.max()), 4),
            "deviation": round(float(values.std()), 4),
            "cost": costs[best],
            "selected_on": "test",
            "largest_gap": gap,
            "solver": config.svm.solver,
        },
    )
