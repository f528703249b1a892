"""A linear probe from its rows to its scores, wherever the rows come from.

Cached rows and rows made in every epoch are treated alike: train all heads, score them on the test
features after each epoch, save the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.distributed.world import World, pick_device
from fastrot.evaluation.linear.heads import HeadShape, LinearHeads
from fastrot.evaluation.linear.rows import RowReader
from fastrot.evaluation.linear.subsets import balanced_subset, describe_subset
from fastrot.evaluation.linear.training import Source, scores_of, train_heads
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import EvalConfig
from fastrot.evaluation.result import Score
from fastrot.features.cache import FeatureCache
from fastrot.system.console import Say

SAVE_SECONDS = 30.0
"""Minimum time between two saved states."""


@dataclass(frozen=True)
class ProbeRows:
    """The rows that a probe is trained and scored on.

    Attributes:
        train: source of the training rows of every epoch.
        test: features of the test transform.
        mode: how training rows are made, as recorded in scores.
        notes: further details to record in each score.
    """

    train: Source
    test: FeatureCache
    mode: str
    notes: Mapping[str, Any]


def training_ids(
    labels: NDArray[np.int64], config: EvalConfig
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Return the samples that a probe trains on, and what its scores record about them."""
    linear = config.linear
    if linear.subset is None:
        return np.arange(len(labels)), {}
    ids = balanced_subset(labels, linear.subset, linear.seed)
    return ids, {"subset": describe_subset(labels, ids, linear.subset, linear.seed)}


def run_probe(
    unit: str,
    open_rows: Callable[[torch.device], AbstractContextManager[ProbeRows]],
    classes: int,
    config: EvalConfig,
    parts: PartialResults,
    say: Say,
    *,
    device: str,
    save_seconds: float,
    world: World | None = None,
) -> list[Score]:
    """Return the top-1 and top-5 accuracy, in percent, of a linear classifier on each layer.

    Layers are those of ``config.features.layers``.

    If the process is killed, the same call resumes from the last saved step and gives bit-identical
    results.

    Args:
        unit: name of the scores, and of the state, in ``parts``.
        open_rows: opens the rows on a device; not called if the scores are already saved.
        classes: K.
        config: sections ``features`` and ``linear``.
        parts: where the main rank saves the state and the scores.
        say: called with each line for the user.
        device: ``auto``, ``cpu`` or ``cuda``.
        save_seconds: minimum time between two saved states, in seconds.
        world: the joined ranks, which all get the same rows; None: only this process.

    Returns:
        The scores; empty on ranks other than the main one if they were already saved.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
        BadDataError: the saved state is damaged.
        StorageError: the state cannot be written.
    """
    world = world or World()
    saved = parts.get(unit)
    if not world.any(saved is not None):
        state = parts.file(unit, ".safetensors")
        linear, layers = config.linear, config.features.layers
        where = pick_device(device, world)
        with open_rows(where) as rows:
            test = rows.test
            infos = [(layer, test.layers[layer]) for layer in layers]
            shapes = [HeadShape(layer, info.channels, info.grid) for layer, info in infos]
            heads = LinearHeads(shapes, classes, linear, where)
            every = np.arange(test.num_samples)
            tests = RowReader(test, layers, every, batch=linear.batch, seed=0, device=where)
            mine = partial(tests.once, world.rank, world.size)
            curves = train_heads(
                heads, rows.train, mine, linear, state, say, save_seconds=save_seconds, world=world
            )
        scores = scores_of(curves, linear, rows.mode, rows.notes)
        saved = {"scores": [score.to_json() for score in scores]}
        parts.put(unit, saved)
        if state is not None:
            state.unlink(missing_ok=True)
    return [Score.from_json(score) for score in saved["scores"]] if saved else []
