"""Linear classification of cached features: the published heads of all layers in one pass.

Protocols: MMSelfSup 0.x ``resnet50_mhead_linear-8xb32-steplr-90e_in1k`` (five pooled layers) and
``resnet50_linear-8xb32-steplr-100e_in1k`` (AvgPool; MoCo's setting), and their like for Places205
and iNaturalist 2018. They train on augmented images (``linear_live.py``). A cache holds each
image as the test transform or K random crops show it, so scores carry their mode, and
``mode_gap`` says what that costs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastrot.distributed.world import World, pick_device
from fastrot.errors import MismatchError
from fastrot.evaluation.linear.heads import HeadShape, LinearHeads
from fastrot.evaluation.linear.optimum import optimum_scores
from fastrot.evaluation.linear.rows import RowReader, check_classes
from fastrot.evaluation.linear.subsets import balanced_subset, describe_subset
from fastrot.evaluation.linear.training import remembered, scores_of, train_heads
from fastrot.evaluation.partial_results import Journal
from fastrot.evaluation.protocol import EvalConfig
from fastrot.evaluation.result import Score
from fastrot.features.cache import FeatureCache
from fastrot.system.console import Say

_SAVE_SECONDS = 30.0


def evaluate_linear(
    train: FeatureCache,
    test: FeatureCache,
    config: EvalConfig,
    journal: Journal,
    say: Say,
    *,
    device: str = "auto",
    save_seconds: float = _SAVE_SECONDS,
) -> list[Score]:
    """Top-1 and top-5 of a linear classifier on each layer of ``config.features.layers``.

    Epoch e takes crop e modulo K of each sample where the cache has K. After a kill the same
    call goes on from the last saved step and gives the same bits. With ``linear.optimum`` the
    exact optimum on the first crop of each sample follows.

    Args:
        train: features to train on.
        test: features of the test transform, to score on.
        config: of the protocol.
        journal: remembers the state and the result.
        say: shows a line.
        device: ``auto``, ``cpu`` or ``cuda``.
        save_seconds: least time between two saved states.

    Raises:
        BadDataError: labels are missing or do not fit (``check_classes``).
        MismatchError: train and test name other classes, or their layers differ.
        NonFiniteError: a loss is NaN or infinite.
        UsageError: a layer is not in a cache.
        StorageError: the state cannot be written.
    """
    layers, linear = config.features.layers, config.linear
    classes = check_classes(train, test, (train.num_samples, test.num_samples))
    shapes = [_shape(train, test, layer) for layer in layers]
    ids, notes = training_ids(np.asarray(train.labels, np.int64), config)

    def run(state: Path | None) -> list[Score]:
        where = pick_device(device, World())
        heads = LinearHeads(shapes, classes, linear, where)
        reader = RowReader(train, layers, ids, batch=linear.batch, seed=linear.seed, device=where)
        every = np.arange(test.num_samples)
        tester = RowReader(test, layers, every, batch=linear.batch, seed=0, device=where)
        curves = train_heads(
            heads, reader, tester.once, linear, state, say, save_seconds=save_seconds
        )
        mode = f"cached-{train.crops}" if train.crops else "cached-0 (test transform)"
        return scores_of(curves, linear, mode, notes)

    scores = remembered(journal, "linear", run)
    if linear.optimum:
        scores += optimum_scores(train, test, layers, ids, config, journal, say, device=device)
    return scores


def training_ids(
    labels: np.ndarray[Any, np.dtype[np.int64]], config: EvalConfig
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], dict[str, Any]]:
    """The samples that a probe trains on, and what its scores say about them."""
    linear = config.linear
    if linear.subset is None:
        return np.arange(len(labels)), {}
    ids = balanced_subset(labels, linear.subset, linear.seed)
    return ids, {"subset": describe_subset(labels, ids, linear.subset, linear.seed)}


def _shape(train: FeatureCache, test: FeatureCache, layer: str) -> HeadShape:
    for cache in (train, test):
        cache.features(layer)  # one without it says which it has
    ours, theirs = train.layers[layer], test.layers[layer]
    if ours != theirs:
        raise MismatchError(
            f"layer {layer!r}: train has {ours}, test {theirs}; extract both in the same way"
        )
    return HeadShape(layer, ours.channels, ours.grid)
