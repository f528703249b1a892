"""The VOC07 SVM protocol: one linear SVM per class on frozen features, the cost chosen by folds.

Goyal et al., 2019, as MMSelfSup 0.x runs it: features are scaled to unit length. For each class
and cost, SVMs are fitted and validated on three stratified folds; the cost with the best mean AP
(scikit-learn's definition; ties go to the first in the list) is refitted on all training images,
and the test AP is the area under the envelope of the precision-recall curve. A difficult image is
a negative in training and is left out of the test of its class. All problems of a layer are solved
together, or one by one by the library in ``svm.solver``: at each cost their AP (from 0 to 1)
agrees within ``SAME_AP`` if the tolerance is 1e-8.

Shapes: n training and m test images, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.data.classes import ClassMatch, check_negatives, match_classes
from fastrot.errors import BadDataError, NonFiniteError
from fastrot.evaluation.metrics import average_precision, mean_over_classes
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import EvalConfig, SvmConfig
from fastrot.evaluation.result import Score
from fastrot.evaluation.svm.folds import stratified_folds
from fastrot.evaluation.svm.library_fits import library_fits
from fastrot.features.cache import FeatureCache
from fastrot.solvers.gram import Gram
from fastrot.solvers.gram_svm import solve_path
from fastrot.system.console import Say

SAME_AP = 1e-3
"""Largest difference between the APs of one problem solved by two solvers to a gap of 1e-8."""


def evaluate_svm(
    train: FeatureCache, test: FeatureCache, config: EvalConfig, parts: PartialResults, say: Say
) -> list[Score]:
    """Return the test mAP of every layer, in percent.

    Args:
        train: features of the training images, with labels of several classes (n, C), or one
            class per image, each of which becomes one problem.
        test: features of the test images, with the same classes.
        config: sections ``features`` and ``svm``.
        parts: layers finished so far.
        say: called with each line for the user.

    Raises:
        BadDataError: labels are missing, or a class has too few positives.
        MismatchError: training and test data differ in classes.
        UsageError: a layer is not in the cache.
    """
    match = match_classes(train, test)
    labels, test_labels = class_signs(train, match), class_signs(test.translated(match), match)
    scores = []
    for layer in config.features.layers:
        record = parts.get(layer)
        if record is None:
            started = time.monotonic()
            where = solver_device()
            features = unit_rows(train, layer).to(where)
            test_features = unit_rows(test, layer).to(where)
            solved = solve_costs(features, labels, config.svm, train.class_names, layer, say)
            score = _score(layer, solved, test_features, test_labels, config.svm, train.class_names)
            record = score.to_json()
            parts.put(layer, record)
            say(f"{layer}: {score.value:.2f} mAP, {time.monotonic() - started:.0f} s")
        scores.append(Score.from_json(record))
    return scores


def solver_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def class_signs(cache: FeatureCache, match: ClassMatch) -> NDArray[np.int8]:
    """Return labels of shape (n, C): 1 present, -1 absent, 0 difficult.

    Args:
        cache: features with labels in the numbers of the training set.
        match: match of the classes.

    Raises:
        BadDataError: there are no labels, or a class has no negative.
    """
    labels = cache.labels
    if not len(labels):
        raise BadDataError(f"{cache.path}: no images; choose data that has some")
    if labels.ndim == 1:
        labels = np.where(np.arange(match.count) == labels[:, None], 1, -1)
    check_negatives(labels, cache.path, match.names)
    return labels.astype(np.int8)


def unit_rows(cache: FeatureCache, layer: str) -> torch.Tensor:
    """Return features divided by their length plus 1e-5, of shape (n, D), float32."""
    features = cache.features(layer)
    if features.ndim != 2:
        raise BadDataError(
            f"{cache.path}: {cache.crops} random crops per image; the SVM protocols need the test "
            "transform"
        )
    rows = torch.from_numpy(features.astype(np.float32))
    if not torch.isfinite(rows).all():
        raise NonFiniteError(
            f"{cache.path}: layer {layer!r} has values that are NaN or infinite; remove that "
            "folder to extract it again"
        )
    unit: torch.Tensor = rows / (rows.norm(dim=1, keepdim=True) + 1e-5)
    return unit


@dataclass(frozen=True)
class SolvedCosts:
    """The solution of all problems of a layer, for S costs in the order of the list.

    Attributes:
        validation: mean AP over the folds, each on its held-out part, of shape (S, C).
        weights: for each cost, weights of the SVMs on all images, of shape (C, D + 1), float32,
            the intercept last.
        largest_gap: largest relative duality gap of all problems.
    """

    validation: NDArray[np.float64]
    weights: list[torch.Tensor]
    largest_gap: float


def solve_costs(
    features: torch.Tensor,
    labels: NDArray[np.int8],
    config: SvmConfig,
    class_names: Sequence[str] | None,
    title: str,
    say: Say,
) -> SolvedCosts:
    """Fit the SVMs of all classes, costs and folds.

    Args:
        features: of shape (n, D), float32, each of unit length.
        labels: of shape (n, C): 1 present, -1 absent, 0 difficult, which counts as a negative.
        config: costs, folds, weight, tolerance, solver.
        class_names: C names, for messages.
        title: name of the work, for lines of progress.
        say: called with each line for the user.

    Raises:
        TooFewImagesError: a class has fewer positives, or fewer negatives, than folds.
        UsageError: the solver is not installed.
    """
    positive = labels == 1
    folds = stratified_folds(positive, config.folds, class_names)
    signs = np.where(positive, 1, -1).astype(np.int8).T
    # For each class, one row per fold without its held-out part, and one row for all images.
    rows = [np.where(folds.T == fold, 0, signs) for fold in range(config.folds)] + [signs]
    problems = np.stack(rows, axis=1).reshape(-1, len(labels))
    solve = _by_fastrot if config.solver == "fastrot" else _by_library
    validation: dict[float, NDArray[np.float64]] = {}
    weights: dict[float, torch.Tensor] = {}
    largest = 0.0
    for cost, decision, of_all, gap in solve(features, problems, config, title, say):
        in_folds = decision.reshape(labels.shape[1], config.folds + 1, -1)[:, :-1]
        validation[cost] = _validate(in_folds, positive, folds)
        weights[cost] = of_all
        largest = max(largest, gap)
    # In the order of the list, so that a tie goes to the first.
    table = np.stack([validation[cost] for cost in config.costs])
    return SolvedCosts(table, [weights[cost] for cost in config.costs], largest)


_Solved = tuple[float, NDArray[np.float64], torch.Tensor, float]
"""A cost; outputs on all images (P, n); weights of each class's last problem; largest gap."""


def _by_fastrot(
    features: torch.Tensor, problems: NDArray[np.int8], config: SvmConfig, title: str, say: Say
) -> Iterator[_Solved]:
    for solution in solve_path(
        Gram(features),
        torch.from_numpy(problems),
        config.costs,
        positive_weight=config.positive_weight,
        tolerance=config.tolerance,
    ):
        b = solution.coefficients.view(-1, config.folds + 1, len(features))[:, -1]
        weights = torch.cat([b.float() @ features, b.sum(1)[:, None].float()], 1)
        decision = solution.decision.cpu().numpy()
        yield solution.cost, decision, weights, float(solution.gap.max())


def _by_library(
    features: torch.Tensor, problems: NDArray[np.int8], config: SvmConfig, title: str, say: Say
) -> Iterator[_Solved]:
    fits = library_fits(features, problems, config.costs, config, title, say)
    for of_cost in zip(*[fits] * len(problems), strict=True):
        w = torch.from_numpy(np.stack([fit.w for fit in of_cost])).to(features.device)
        decision = (w[:, :-1] @ features.double().T + w[:, -1:]).cpu().numpy()
        weights = w[config.folds :: config.folds + 1].float()
        yield of_cost[0].cost, decision, weights, max(fit.gap for fit in of_cost)


def precisions_on_test(
    features: torch.Tensor, weights: torch.Tensor, labels: NDArray[np.int8]
) -> NDArray[np.float64]:
    """Return the test AP of each class, of shape (C,).

    Args:
        features: features of the test images, of shape (m, D).
        weights: of shape (C, D + 1), the intercept last.
        labels: of shape (m, C): 1 present, -1 absent, 0 left out.
    """
    values = []
    for c, w in enumerate(weights):
        outputs = (features @ w[:-1] + w[-1]).cpu().numpy()
        values.append(float(average_precision(labels[:, c], outputs, "voc2010")[0]))
    return np.array(values)


def _score(
    layer: str,
    solved: SolvedCosts,
    test_features: torch.Tensor,
    test_labels: NDArray[np.int8],
    config: SvmConfig,
    class_names: Sequence[str] | None,
) -> Score:
    chosen = solved.validation.argmax(axis=0)
    weights = torch.stack([solved.weights[i][c] for c, i in enumerate(chosen)])
    precision = precisions_on_test(test_features, weights, test_labels)
    return Score(
        name=layer,
        metric="mAP",
        value=100 * float(mean_over_classes(precision, class_names)),
        layer=layer,
        detail={
            "ap": [round(100 * value, 4) for value in precision.tolist()],
            "costs": [config.costs[i] for i in chosen],
            "fold_ap": [round(100 * value, 4) for value in solved.validation.max(axis=0).tolist()],
            "largest_gap": solved.largest_gap,
            "solver": config.solver,
        },
    )


def _validate(
    decision: NDArray[np.float64], positive: NDArray[np.bool_], folds: NDArray[np.int8]
) -> NDArray[np.float64]:
    """Return the mean over the folds of the AP on their held-out parts, of shape (C,)."""
    classes, parts, _ = decision.shape
    values = np.empty((classes, parts))
    for c in range(classes):
        for fold in range(parts):
            part = folds[:, c] == fold
            values[c, fold] = average_precision(
                positive[part, c], decision[c, fold, part], "sklearn"
            )[0]
    mean: NDArray[np.float64] = values.mean(axis=1)
    return mean
