"""The VOC07 SVM protocol: one linear SVM a class on frozen features, the cost chosen by folds.

Goyal et al., 2019, as MMSelfSup 0.x runs it: features are scaled to unit length; for each class
and cost an SVM is fitted to each of three stratified folds, the cost of best mean AP
(scikit-learn's definition; ties go to the first of the list) is refitted on all training images,
and the test AP is the area under the precision-recall curve with its envelope. A difficult image
is a negative in training and is left out of the test of its class. All problems of a layer are
solved together.

Shapes: n training and m test images, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

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
from fastrot.features.cache import FeatureCache
from fastrot.solvers.gram import Gram
from fastrot.solvers.gram_svm import solve_path
from fastrot.system.console import Say


def evaluate_svm(
    train: FeatureCache, test: FeatureCache, config: EvalConfig, parts: PartialResults, say: Say
) -> list[Score]:
    """Test mAP of every layer, in percent.

    Args:
        train: features of the training images; labels of several classes (n, C), or one class
            an image, which makes one problem a class.
        test: of the test images, with the same classes.
        config: sections ``features`` and ``svm``.
        parts: layers that are done already.
        say: one line to the user.

    Raises:
        BadDataError: labels are missing, or a class has too few positives.
        MismatchError: training and test data have other classes.
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
            score = _layer(
                layer, features, labels, test_features, test_labels, config.svm, train.class_names
            )
            record = score.to_json()
            parts.put(layer, record)
            say(f"{layer}: {score.value:.2f} mAP, {time.monotonic() - started:.0f} s")
        scores.append(Score.from_json(record))
    return scores


def solver_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def class_signs(cache: FeatureCache, match: ClassMatch) -> NDArray[np.int8]:
    """Labels of shape (n, C): 1 present, -1 absent, 0 difficult.

    Args:
        cache: whose labels, in the numbers of the training set.
        match: of the classes.

    Raises:
        BadDataError: there are none, or a class has no counted negative.
    """
    labels = cache.labels
    if not len(labels):
        raise BadDataError(f"{cache.path}: no images; name data that has some")
    if labels.ndim == 1:
        labels = np.where(np.arange(match.count) == labels[:, None], 1, -1)
    check_negatives(labels, cache.path, match.names)
    return labels.astype(np.int8)


def unit_rows(cache: FeatureCache, layer: str) -> torch.Tensor:
    """Features divided by their length plus 1e-5, of shape (n, D), float32."""
    features = cache.features(layer)
    if features.ndim != 2:
        raise BadDataError(
            f"{cache.path}: {cache.crops} random crops an image; the SVM protocols take the test "
            "transform"
        )
    rows = torch.from_numpy(features.astype(np.float32))
    if not torch.isfinite(rows).all():
        raise NonFiniteError(
            f"{cache.path}: layer {layer!r} has values that are NaN or infinite; remove that "
            "folder, and it is extracted again"
        )
    unit: torch.Tensor = rows / (rows.norm(dim=1, keepdim=True) + 1e-5)
    return unit


def _layer(
    layer: str,
    features: torch.Tensor,
    labels: NDArray[np.int8],
    test_features: torch.Tensor,
    test_labels: NDArray[np.int8],
    config: SvmConfig,
    class_names: Sequence[str] | None,
) -> Score:
    positive = labels == 1  # difficult images are negatives here
    folds = stratified_folds(positive, config.folds, class_names)
    signs = np.where(positive, 1, -1).astype(np.int8).T
    # One block of rows for each fold without its own part, and one for all images.
    rows = [np.where(folds.T == fold, 0, signs) for fold in range(config.folds)] + [signs]
    problems = torch.from_numpy(np.stack(rows, axis=1).reshape(-1, len(labels)))
    validation: dict[float, NDArray[np.float64]] = {}
    weights: dict[float, torch.Tensor] = {}
    gap = 0.0
    for solution in solve_path(
        Gram(features),
        problems,
        config.costs,
        positive_weight=config.positive_weight,
        tolerance=config.tolerance,
    ):
        shape = (labels.shape[1], config.folds + 1, len(labels))
        decision = solution.decision.view(shape)[:, :-1].cpu().numpy()
        validation[solution.cost] = _validate(decision, positive, folds)
        b = solution.coefficients.view(shape)[:, -1]
        weights[solution.cost] = torch.cat([b.float() @ features, b.sum(1)[:, None].float()], 1)
        gap = max(gap, float(solution.gap.max()))
    # In the order of the list, so that a tie goes to the first one.
    table = np.stack([validation[cost] for cost in config.costs])
    chosen = [config.costs[i] for i in table.argmax(axis=0)]
    precision = np.array(
        [
            _test_precision(test_features, weights[cost][c], test_labels[:, c])
            for c, cost in enumerate(chosen)
        ]
    )
    return Score(
        name=layer,
        metric="mAP",
        value=100 * float(mean_over_classes(precision, class_names)),
        layer=layer,
        detail={
            "ap": [round(100 * value, 4) for value in precision.tolist()],
            "costs": chosen,
            "fold_ap": [round(100 * value, 4) for value in table.max(axis=0).tolist()],
            "largest_gap": gap,
        },
    )


def _validate(
    decision: NDArray[np.float64], positive: NDArray[np.bool_], folds: NDArray[np.int8]
) -> NDArray[np.float64]:
    """Mean over the folds of the AP of their own parts, of shape (C,)."""
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


def _test_precision(
    features: torch.Tensor, weights: torch.Tensor, labels: NDArray[np.int8]
) -> float:
    outputs = (features @ weights[:-1] + weights[-1]).cpu().numpy()
    return float(average_precision(labels, outputs, "voc2010")[0])
