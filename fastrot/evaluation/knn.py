"""Weighted nearest neighbours on frozen features: no training, no settings to choose.

DINO's classifier (Caron et al., 2021), adopted by MMSelfSup 0.x (``test_knn.py``): features are
scaled to unit length, and each of the k most similar training images votes for its class with
weight exp(similarity / T). Top-1 is the class with the most votes, top-5 the first five classes
(the first k if k < 5). Equal votes rank the lower class first, even among classes without votes;
equal similarities rank the earlier training image first. An image whose features are all zero has
similarity 0 to every other. One search, at the largest k, serves all k.

Shapes: n training and m test images, C classes, k neighbours.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.data.classes import ClassMatch, match_single_classes
from fastrot.errors import BadDataError, MismatchError, UsageError
from fastrot.evaluation.metrics import label_ranks
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import EvalConfig
from fastrot.evaluation.result import Score
from fastrot.features.cache import FeatureCache
from fastrot.solvers.topk import nearest_rows
from fastrot.system.console import Say

_UNIT = 8192  # test images per part; a finished part survives a kill
_VOTE_BYTES = 2**26
_TOPS = (1, 5)
_SAY_SECONDS = 10.0


def evaluate_knn(
    train: FeatureCache,
    test: FeatureCache,
    config: EvalConfig,
    parts: PartialResults,
    say: Say,
    *,
    device: str = "auto",
    unit: int = _UNIT,
) -> list[Score]:
    """Return top-1 and top-5 for every k and layer, in percent.

    Args:
        train: features that vote, with one class per image.
        test: features to classify, of the same classes.
        config: sections ``features`` and ``knn``.
        parts: results of the parts finished so far.
        say: called with each line for the user.
        device: ``auto``, ``cpu`` or ``cuda``.
        unit: test images per part. Finished parts are found again only with the same value.

    Raises:
        BadDataError: labels are missing, out of range or several per image, or crops are cached.
        MismatchError: the caches differ in classes or dimensions.
        UsageError: k is larger than the number of training images, or a layer is not in a cache.
    """
    match = _check(train, test, config)
    test, classes = test.translated(match), match.count
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    scores = []
    for layer in config.features.layers:
        hits = {(k, top): 0 for k in config.knn.k for top in _TOPS}
        started = time.monotonic()
        for start in range(0, test.num_samples, unit):
            stop = min(start + unit, test.num_samples)
            name = f"{layer}-{start}-{stop}"
            record = parts.get(name)
            if record is None:
                record = _part(train, test, layer, slice(start, stop), classes, config, device, say)
                parts.put(name, record)
            for k, top in hits:
                hits[k, top] += record["hits"][str(k)][str(top)]
        for k in config.knn.k:
            scores += _scores(k, layer, hits, test.num_samples, config)
        tops = ", ".join(f"{s.value:.2f} ({s.name})" for s in scores if s.metric == "top1"
                         and s.layer == layer)  # fmt: skip
        say(f"{layer}: top-1 {tops}, {time.monotonic() - started:.0f} s")
    return scores


def vote(
    similarities: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    k: int,
    classes: int,
    temperature: float,
) -> NDArray[np.float64]:
    """Return the votes of the first k neighbours for each class, of shape (m, C).

    Weights are relative to that of the most similar neighbour, exp((s - s_max) / T), which keeps
    the ranking and cannot overflow at any temperature.

    Args:
        similarities: of shape (m, K), K >= k, decreasing.
        labels: classes of the neighbours, of shape (m, K).
        k: neighbours that vote.
        classes: C.
        temperature: T.

    Example:
        >>> vote(np.float32([[1.0, 0.5]]), np.array([[1, 0]]), k=2, classes=2, temperature=0.5)
        array([[0.36787944, 1.        ]])
    """
    near = similarities[:, :k].astype(np.float64)
    weights = np.exp((near - near[:, :1]) / temperature)
    # bincount adds sequentially, in the order of the neighbours, on every machine.
    places = np.arange(len(near))[:, None] * classes + labels[:, :k]
    votes = np.bincount(places.ravel(), weights.ravel(), minlength=len(near) * classes)
    return np.asarray(votes, np.float64).reshape(len(near), classes)


def _part(
    train: FeatureCache,
    test: FeatureCache,
    layer: str,
    part: slice,
    classes: int,
    config: EvalConfig,
    device: str,
    say: Say,
) -> dict[str, Any]:
    """Classify some test images; return the number classified correctly, by k and top."""
    last = time.monotonic()

    def progress(done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last > _SAY_SECONDS and done < of:
            last = time.monotonic()
            say(
                f"{layer}: images {part.start} to {part.stop}, compared with {100 * done // of} % "
                "of the training images"
            )

    similarities, rows = nearest_rows(
        test.features(layer)[part],
        train.features(layer),
        max(config.knn.k),
        device=device,
        progress=progress,
    )
    labels = np.asarray(test.labels[part], np.int64)
    neighbours = np.asarray(train.labels, np.int64)[rows]
    hits: dict[str, dict[str, int]] = {}
    step = max(1, _VOTE_BYTES // (8 * classes))
    for k in config.knn.k:
        counted = dict.fromkeys(map(str, _TOPS), 0)
        for start in range(0, len(labels), step):
            some = slice(start, start + step)
            votes = vote(
                similarities[some],
                neighbours[some],
                k=k,
                classes=classes,
                temperature=config.knn.temperature,
            )
            ranks = label_ranks(labels[some], votes)
            for top in _TOPS:
                counted[str(top)] += int((ranks < min(top, k)).sum())
        hits[str(k)] = counted
    return {"hits": hits}


def _scores(
    k: int, layer: str, hits: dict[tuple[int, int], int], images: int, config: EvalConfig
) -> list[Score]:
    name = f"k={k}" if len(config.features.layers) == 1 else f"k={k} {layer}"
    return [
        Score(
            name=name,
            metric=f"top{top}",
            value=100 * hits[k, top] / images,
            layer=layer,
            detail={"k": k, "temperature": config.knn.temperature, "images": images},
        )
        for top in _TOPS
    ]


def _check(train: FeatureCache, test: FeatureCache, config: EvalConfig) -> ClassMatch:
    """Return the match of the two caches' classes; refuse caches that cannot be compared."""
    for cache in (train, test):
        if cache.crops:
            raise BadDataError(
                f"{cache.path}: {cache.crops} random crops per image; kNN needs the test "
                "transform: extract without --crops"
            )
    match = match_single_classes(train, test, (train.num_samples, test.num_samples))
    for k in config.knn.k:
        if k > train.num_samples:
            raise UsageError(
                f"knn.k: {k} neighbours are more than the {train.num_samples} images of "
                f"{train.path}; set knn.k to values up to {train.num_samples}"
            )
    for layer in config.features.layers:
        ours, theirs = train.features(layer).shape[1], test.features(layer).shape[1]
        if ours != theirs:
            raise MismatchError(
                f"layer {layer!r}: {ours} values in {train.path} and {theirs} in {test.path}; "
                "extract both in the same way"
            )
    return match
