"""Linear classification on live crops: the published probes, all layers of one forward pass.

Mode ``augmented``. MMSelfSup 0.x trains its heads on crops that no two epochs share: random
resized crop and flip, for ImageNet's five heads colour jitter and lighting too, for Places205 a
random crop of the centre square. Each batch is decoded once by the fast loader, goes once through
the frozen backbone (in eval mode: its batch norms neither learn nor count), and every head takes
its step from that. Test features are extracted once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from fastrot.data.dataset import Dataset
from fastrot.data.loader import Loader, LoaderSpec, build_loader, choose_loader
from fastrot.data.sampling.sampler import Sampler
from fastrot.data.subset import DatasetSubset
from fastrot.distributed.world import World, pick_device
from fastrot.evaluation.extract import scoring_crop, training_crop
from fastrot.evaluation.linear.cached import training_ids
from fastrot.evaluation.linear.heads import HeadShape, LinearHeads
from fastrot.evaluation.linear.online_rows import OnlineRows
from fastrot.evaluation.linear.rows import RowReader, check_classes
from fastrot.evaluation.linear.training import remembered, scores_of, train_heads
from fastrot.evaluation.partial_results import Journal
from fastrot.evaluation.protocol import EvalConfig
from fastrot.evaluation.result import Score
from fastrot.features.extract import extract_features, pass_size
from fastrot.features.forward import FeatureNetwork
from fastrot.features.spec import feature_identity, plan_features
from fastrot.system.console import Say
from fastrot.system.machine import usable_cores
from fastrot.weights.load import Backbone

MODE = "augmented"

_SAVE_SECONDS = 30.0


def evaluate_linear_live(
    backbone: Backbone,
    train: Dataset,
    test: Dataset,
    config: EvalConfig,
    journal: Journal,
    say: Say,
    *,
    device: str = "auto",
    loader: str = "auto",
    workers: int | None = None,
    test_cache: Path | None = None,
    test_layers: Sequence[str] | None = None,
    progress: bool = True,
    save_seconds: float = _SAVE_SECONDS,
) -> list[Score]:
    """Top-1 and top-5 of a linear classifier on each layer of ``config.features.layers``.

    After a kill the same call goes on from the last saved step and gives the same bits. The
    order of the training images is random over the whole data set.

    Args:
        backbone: left as it is, to the bit.
        train: images to train on, one label each.
        test: images to score on, of the same classes, seen by the test transform.
        config: of the protocol.
        journal: remembers the state and the result; ``live_identity`` says under what.
        say: shows a line.
        device: ``auto``, ``cpu`` or ``cuda``.
        loader: of the training images; ``auto``: the fastest.
        workers: decoding threads or processes; None: by the cores.
        test_cache: folder of the test features, which may be there already; None: one in the
            journal's folder.
        test_layers: of that cache, which may hold more than are probed; None: those.
        progress: show that of the extraction on standard error.
        save_seconds: least time between two saved states.

    Raises:
        BadDataError: labels are missing or do not fit (``check_classes``), or an image is bad.
        MismatchError: train and test name other classes; the cache is of something else.
        NonFiniteError: a loss is NaN or infinite.
        UsageError: a layer, the device or the loader is not known.
        StorageError: something cannot be written.
    """
    linear = config.linear
    classes = check_classes(train, test, (len(train), len(test)))
    ids, notes = training_ids(np.asarray(train.labels, np.int64), config)
    if linear.subset is not None:
        train = DatasetSubset(train, ids)
    if linear.optimum:
        say("linear.optimum: left out, it is defined on cached features; use a cached mode for it")

    def run(state: Path | None) -> list[Score]:
        with ExitStack() as stack:
            folder = test_cache or journal.file("test-features", "")
            if folder is None:
                folder = Path(stack.enter_context(TemporaryDirectory())) / "test"
            features = config.features
            shown = extract_features(
                backbone,
                test,
                folder,
                layers=test_layers or features.layers,
                crop=scoring_crop(config, backbone),
                device=device,
                workers=workers,
                precision=features.precision,
                progress=progress,
            )
            where = pick_device(device, World())
            every = np.arange(len(test))
            tests = RowReader(
                shown, features.layers, every, batch=linear.batch, seed=0, device=where
            )
            infos = [(layer, shown.layers[layer]) for layer in features.layers]
            shapes = [HeadShape(layer, info.channels, info.grid) for layer, info in infos]
            heads = LinearHeads(shapes, classes, linear, where)
            reader, name = _reader(train, backbone, config, where, loader, workers)
            stack.callback(reader.close)
            say(f"linear probe: {len(train):,} images an epoch, decoded by the loader {name}")
            rows = _rows(stack, reader, backbone, test, config, where)
            curves = train_heads(
                heads, rows, tests.once, linear, state, say, save_seconds=save_seconds
            )
        return scores_of(curves, linear, MODE, {"augment": linear.augment, "loader": name, **notes})

    return remembered(journal, "linear-augmented", run)


def live_identity(
    backbone: Backbone,
    train: Dataset,
    test: Dataset,
    config: EvalConfig,
    *,
    device: str = "auto",
    loader: str = "auto",
) -> dict[str, Any]:
    """What the scores of ``evaluate_linear_live`` depend on besides its settings."""
    layers, features = config.features.layers, config.features
    crop = training_crop(config, backbone)
    known: dict[str, Any] = {"layers": layers, "device": device, "precision": features.precision}
    seen = feature_identity(
        backbone,
        train,
        crop=crop,
        crops=0 if config.linear.augment == "none" else 1,
        seed=config.linear.seed,
        **known,
    )
    seen |= {"crops": "one an epoch", "decoding": loader}
    shown = feature_identity(backbone, test, crop=scoring_crop(config, backbone), **known)
    return {"mode": MODE, "train": seen, "test": shown}


def _reader(
    train: Dataset,
    backbone: Backbone,
    config: EvalConfig,
    device: torch.device,
    loader: str,
    workers: int | None,
) -> tuple[Loader, str]:
    """The loader of the training images, and its name."""
    linear, cores = config.linear, usable_cores()
    if workers is None:  # on a CPU decoding and the forward pass share the cores
        workers = cores if device.type == "cuda" else max(1, cores // 2)
    spec = LoaderSpec(
        train,
        Sampler(len(train), linear.batch, seed=linear.seed, drop_last=False),
        training_crop(config, backbone),
        linear.seed,
        device,
        workers=workers,
    )
    images = len(train) * linear.epochs
    name = choose_loader(spec, images=images)[0] if loader == "auto" else loader
    return build_loader(name, spec), name


def _rows(
    stack: ExitStack,
    reader: Loader,
    backbone: Backbone,
    samples: Dataset,
    config: EvalConfig,
    device: torch.device,
) -> OnlineRows:
    """Rows of the reader's images, as long as ``stack`` is open."""
    features, crop = config.features, scoring_crop(config, backbone)
    plan = plan_features(
        backbone, samples, features.layers, crop, 0, 0, "auto", device, features.precision
    )
    return OnlineRows(
        stack.enter_context(FeatureNetwork(backbone, plan, device)),
        reader,
        backbone,
        seed=config.linear.seed,
        coloured=config.linear.augment == "rrc_jitter_lighting",
        images_a_pass=pass_size(crop.size, device),
    )
