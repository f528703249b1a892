"""Linear classification of cached features: the published heads of all layers in one pass.

Protocols: MMSelfSup 0.x ``resnet50_mhead_linear-8xb32-steplr-90e_in1k`` (five pooled layers) and
``resnet50_linear-8xb32-steplr-100e_in1k`` (AvgPool; MoCo's setting), and their counterparts for
Places205 and iNaturalist 2018. They train on augmented images (``online.py``). A cache holds only
the test transform or K random crops of each image, so scores record their mode, and ``mode_gap``
measures what caching costs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from fastrot.data.classes import match_single_classes
from fastrot.errors import MismatchError
from fastrot.evaluation.linear.optimum import optimum_scores
from fastrot.evaluation.linear.probe import SAVE_SECONDS, ProbeRows, run_probe, training_ids
from fastrot.evaluation.linear.rows import RowReader
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import EvalConfig
from fastrot.evaluation.result import Score
from fastrot.features.cache import FeatureCache
from fastrot.system.console import Say


def evaluate_linear(
    train: FeatureCache,
    test: FeatureCache,
    config: EvalConfig,
    parts: PartialResults,
    say: Say,
    *,
    device: str = "auto",
    save_seconds: float = SAVE_SECONDS,
) -> list[Score]:
    """Return the top-1 and top-5 accuracy, in percent, of a linear classifier on each layer.

    Layers are those of ``config.features.layers``.

    With K cached crops, epoch e uses crop e modulo K of each sample. If the process is killed, the
    same call resumes from the last saved step and gives bit-identical results. With
    ``linear.optimum`` the exact optimum on the first crop of each sample follows.

    Args:
        train: features to train on.
        test: features of the test transform, to score on.
        config: settings of the protocol.
        parts: where the state and the result are saved.
        say: called with each line for the user.
        device: ``auto``, ``cpu`` or ``cuda``.
        save_seconds: minimum time between two saved states, in seconds.

    Raises:
        BadDataError: labels are missing or do not fit (``match_single_classes``).
        MismatchError: train and test differ in classes or layers.
        NonFiniteError: a loss is NaN or infinite.
        UsageError: a layer is not in a cache.
        StorageError: the state cannot be written.
    """
    layers, linear = config.features.layers, config.linear
    match = match_single_classes(train, test, (train.num_samples, test.num_samples))
    test = test.translated(match)
    for layer in layers:
        _check_layer(train, test, layer)
    ids, notes = training_ids(np.asarray(train.labels, np.int64), config)

    def rows(where: torch.device) -> AbstractContextManager[ProbeRows]:
        reader = RowReader(train, layers, ids, batch=linear.batch, seed=linear.seed, device=where)
        mode = f"cached-{train.crops}" if train.crops else "cached-0 (test transform)"
        return nullcontext(ProbeRows(reader, test, mode, notes))

    scores = run_probe(
        "linear", rows, match.count, config, parts, say, device=device, save_seconds=save_seconds
    )
    if linear.optimum:
        scores += optimum_scores(train, test, layers, ids, config, parts, say, device=device)
    return scores


def _check_layer(train: FeatureCache, test: FeatureCache, layer: str) -> None:
    """Refuse a layer that a cache lacks, or that the two caches hold differently."""
    for cache in (train, test):
        cache.features(layer)  # raises an error if there is no such layer
    ours, theirs = train.layers[layer], test.layers[layer]
    if ours != theirs:
        raise MismatchError(
            f"layer {layer!r}: train has {ours}, test {theirs}; extract both in the same way"
        )
