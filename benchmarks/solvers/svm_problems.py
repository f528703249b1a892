"""Problems of the SVM protocols, from which a benchmark draws a sample.

Shapes: n samples, D features, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrot.evaluation.protocol import EvalConfig
from fastrot.evaluation.svm.draws import draw_signs
from fastrot.evaluation.svm.folds import stratified_folds


class Problem(NamedTuple):
    """One SVM.

    Attributes:
        task: problems of one task are fitted one after another, as in the published scripts.
        label: index of its class.
        rows: samples in the problem, increasing.
        signs: signs of these samples, 1 or -1, int8.
        cost: C of a negative sample.
        is_final: whether the test set is scored with it.
    """

    task: int
    label: int
    rows: NDArray[np.int64]
    signs: NDArray[np.int8]
    cost: float
    is_final: bool


class Sample(NamedTuple):
    """Some of the problems of a protocol, equally many for each cost.

    Attributes:
        problems: the sampled problems.
        share: their share of the protocol's problems with the same cost and size.
        total: number of problems in the protocol.
    """

    problems: list[Problem]
    share: float
    total: int


def sample_problems(
    labels: NDArray[np.int8], config: EvalConfig, *, each: int, seed: int
) -> Sample:
    """Draw a defined part of a protocol's problems.

    voc07-svm: ``each`` classes for each cost, with all their folds and the refit on all images.
    voc07-lowshot: ``each`` pairs of draw and class for each cost and number of shots.

    Args:
        labels: of shape (n, C): 1 present, -1 absent, 0 difficult.
        config: the protocol.
        each: see above.
        seed: seed of the choice.
    """
    generator = np.random.default_rng(seed)
    classes = labels.shape[1]
    problems: list[Problem] = []
    task = 0
    if config.kind == "svm":
        positive = labels == 1
        folds = stratified_folds(positive, config.svm.folds)
        for cost in config.svm.costs:
            for c in generator.permutation(classes)[:each].tolist():
                for fold in range(config.svm.folds + 1):
                    rows = np.flatnonzero(folds[:, c] != fold)
                    signs = np.where(positive[rows, c], 1, -1).astype(np.int8)
                    problems.append(Problem(task, c, rows, signs, cost, fold == config.svm.folds))
                task += 1
        total = len(config.svm.costs) * classes * (config.svm.folds + 1)
        return Sample(problems, min(each, classes) / classes, total)
    low = config.lowshot
    pairs = classes * low.draws
    for shots in low.shots:
        signs = np.stack(
            [
                draw_signs(labels, shots, d, negatives=low.negatives, seed=low.seed)
                for d in range(low.draws)
            ]
        )
        for cost in config.svm.costs:
            for pair in generator.permutation(pairs)[:each].tolist():
                d, c = divmod(pair, classes)
                rows = np.flatnonzero(signs[d, :, c])
                problems.append(Problem(task, c, rows, signs[d, rows, c], cost, True))
                task += 1
    total = len(low.shots) * len(config.svm.costs) * pairs
    return Sample(problems, min(each, pairs) / pairs, total)
