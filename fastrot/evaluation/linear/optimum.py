"""The exact optimum of a linear probe, which SGD with a schedule only approaches.

The features of each layer are standardised as by the probes' batch norm (``standardise``; with
``linear.batchnorm`` off they are unchanged), and softmax regression with an L2 penalty is solved
to its optimum by fastrot (``solvers.softmax``) or the library in ``linear.solver``; they agree
within ``SAME_TOP1`` points. The strength of the penalty is chosen by top-1 on a tenth of the
training samples, balanced over the classes, never on the test set; then all training samples are
solved with it. Samples are seen by the test transform, or as the first of their cached crops.
These numbers are not published anywhere: they are an upper bound for what weight decay and a
schedule can find on features without augmentation.

Shapes: n samples in the cache, m training samples, C classes, D features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.data.sampling.philox import Stream, philox_u64
from fastrot.distributed.world import World, pick_device
from fastrot.errors import BadDataError, NonFiniteError
from fastrot.evaluation.linear.standardise import channel_statistics, read_rows, standardise
from fastrot.evaluation.metrics import top_k_accuracy
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import EvalConfig, LinearConfig
from fastrot.evaluation.result import Score
from fastrot.features.cache import FeatureCache
from fastrot.solvers.softmax import Solution, solve_path
from fastrot.solvers.softmax_libraries import solve_by_library
from fastrot.system.console import Say

SAME_TOP1 = 0.1
"""Largest difference, in points, between the accuracies of one problem solved by two solvers."""

_SHARE = 0.1
_TOP = 5

_Ids = NDArray[np.int64]


def optimum_scores(
    train: FeatureCache,
    test: FeatureCache,
    layers: Sequence[str],
    ids: _Ids,
    config: EvalConfig,
    parts: PartialResults,
    say: Say,
    *,
    device: str = "auto",
) -> list[Score]:
    """Return top-1 and top-5 of the optimum on each layer, in percent, named ``layer3 optimum``.

    Layers saved in ``parts`` are not solved again.

    Args:
        train: features to train on, of shape (n, D) or (n, K, D), labelled with one class each;
            a layer is held in memory in float32, plus the memory for ``solve_path``.
        test: features to score on, of the same classes.
        layers: names of the layers.
        ids: rows of ``train`` to train on, of shape (m,), int64.
        config: section ``linear``: batchnorm, seed, strengths, tolerance, solver.
        parts: where finished layers are saved.
        say: called with each line for the user.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        BadDataError: there are several strengths, but no class has two samples.
        UsageError: a layer is not in a cache; the solver is not installed.
    """
    where = pick_device(device, World())
    scores: list[Score] = []
    for layer in layers:
        record = parts.get(f"optimum {layer}")
        if record is None:
            started = time.monotonic()
            found = _of_layer(train, test, layer, ids, config.linear, where, say)
            record = {"scores": [score.to_json() for score in found]}
            parts.put(f"optimum {layer}", record)
            detail = found[0].detail
            say(
                f"{found[0].name}: top-1 {found[0].value:.2f}, strength {detail['strength']:g}"
                f"{', the end of the list' if detail['at_end'] else ''}, gap {detail['gap']:.1e}, "
                f"{time.monotonic() - started:.0f} s"
            )
        scores += [Score.from_json(score) for score in record["scores"]]
    return scores


def hold_out(labels: _Ids, ids: _Ids, seed: int) -> NDArray[np.bool_]:
    """Return a mask of the samples that choose the strength, of shape (m,).

    It selects a tenth of each class, rounded, at least one and never all: the only sample of a
    class is used for training. The choice depends on the samples' indices and classes, not on
    their order.

    Args:
        labels: of shape (m,).
        ids: indices of the samples, of shape (m,).
        seed: 64-bit key.

    Example:
        >>> hold_out(np.repeat([0, 1], 20), np.arange(40), seed=0).sum()
        np.int64(4)
    """
    _, own, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    wanted = np.minimum(np.maximum(1, np.rint(_SHARE * sizes)), sizes - 1)
    order = np.lexsort((philox_u64(seed, 0, ids, Stream.HOLD_OUT), own))
    starts = np.cumsum(sizes) - sizes
    chosen = np.zeros(len(labels), np.bool_)
    chosen[order] = np.arange(len(labels)) - starts[own[order]] < wanted[own[order]]
    return chosen


def _of_layer(
    train: FeatureCache,
    test: FeatureCache,
    layer: str,
    ids: _Ids,
    config: LinearConfig,
    device: torch.device,
    say: Say,
) -> list[Score]:
    train_labels, test_labels = _labels(train), _labels(test)
    names = train.class_names or test.class_names
    classes = len(names) if names else int(max(train_labels.max(), test_labels.max())) + 1

    def solve(
        rows: _Ids, seen: FeatureCache, seen_rows: _Ids, strengths: Sequence[float]
    ) -> Iterator[tuple[Solution, NDArray[np.float32]]]:
        """Yield the optima on some rows of train, with the logits of other rows."""
        x, other = read_rows(train, layer, rows), read_rows(seen, layer, seen_rows)
        if config.batchnorm:
            statistics = channel_statistics(x, train.layers[layer].channels)
            x, other = standardise(x, statistics), standardise(other, statistics)
        x, other = x.to(device), other.to(device)
        labels = torch.from_numpy(train_labels[rows]).to(device)
        for solution in _solutions(x, labels, strengths, classes, config, say):
            yield solution, solution.logits(other).cpu().numpy()

    table: list[dict[str, float]] = []
    chosen = config.strengths[0]
    held = np.zeros(len(ids), np.bool_)
    if len(config.strengths) > 1:
        held = hold_out(train_labels[ids], ids, config.seed)
        if not held.any():
            raise BadDataError(
                f"{train.path}: no class has two samples, so none is left to choose between the "
                f"strengths {list(config.strengths)}; set one with --set linear.strengths=..."
            )
        rights = train_labels[ids[held]]
        found = {
            solution.strength: {
                "strength": solution.strength,
                "top1": round(100 * top_k_accuracy(rights, logits), 4),
                **_reached(solution),
            }
            for solution, logits in solve(ids[~held], train, ids[held], config.strengths)
        }
        # In the order of the list, so that a tie goes to the first.
        table = [found[strength] for strength in config.strengths]
        chosen = max(table, key=lambda row: row["top1"])["strength"]
    ((solution, logits),) = solve(ids, test, np.arange(test.num_samples), [chosen])
    detail: dict[str, Any] = {
        "mode": f"first of {train.crops} crops" if train.crops else "test transform",
        "strength": chosen,
        "at_end": len(table) > 1 and chosen in (min(config.strengths), max(config.strengths)),
        **_reached(solution),
        "solver": config.solver,
        "images": len(ids),
        "held_out": int(held.sum()),
        "validation": table,
    }
    return [
        Score(
            f"{layer} optimum", metric, 100 * top_k_accuracy(test_labels, logits, k), layer, detail
        )
        for metric, k in (("top1", 1), ("top5", _TOP))
    ]


def _solutions(
    x: torch.Tensor,
    labels: torch.Tensor,
    strengths: Sequence[float],
    classes: int,
    config: LinearConfig,
    say: Say,
) -> Iterator[Solution]:
    solver, tolerance = config.solver, config.tolerance
    if solver == "fastrot":
        yield from solve_path(x, labels, strengths, classes=classes, tolerance=tolerance)
        return
    for strength in strengths:
        began = time.monotonic()
        found = solve_by_library(solver, x, labels, strength, classes=classes, tolerance=tolerance)
        if math.isnan(found.gap):
            raise NonFiniteError(
                f"strength {strength:g}: {solver} found no finite solution; use "
                "linear.solver=fastrot"
            )
        say(
            f"strength {strength:g} by {solver}: gap {found.gap:.1e}, "
            f"{time.monotonic() - began:.0f} s"
        )
        yield found


def _reached(solution: Solution) -> dict[str, float]:
    return {
        "objective": float(f"{solution.objective:.9g}"),
        "gap": float(f"{solution.gap:.3g}"),
    }


def _labels(cache: FeatureCache) -> _Ids:
    labels = np.asarray(cache.labels)
    if labels.ndim != 1 or not len(labels) or int(labels.min()) < 0:
        raise BadDataError(f"{cache.path}: the optimum needs one class per sample; label them")
    return labels.astype(np.int64)
