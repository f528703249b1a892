"""Linear classification on online crops: the published probes, all layers from one forward pass.

Mode ``augmented``. MMSelfSup 0.x trains its heads on new crops in every epoch: random resized crop
and flip; for ImageNet's five heads also colour jitter and lighting; for Places205 a random crop of
the centre square. Each batch is decoded once by the fast loader and passes once through the frozen
backbone (in eval mode, so its batch norms do not change), and every head takes its step from that.
Test features are extracted once.

Several ranks share the decoding and the forward passes of each batch, and the test images. Every
rank then takes the same step with the rows of all, so that a batch, the statistics of its batch
norm and its losses are those of one rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from fastrot.data.classes import match_single_classes
from fastrot.data.dataset import Dataset
from fastrot.data.loader import Loader, LoaderSpec, build_loader, choose_loader
from fastrot.data.sampling.sampler import Sampler
from fastrot.data.subset import DatasetSubset
from fastrot.distributed.world import World
from fastrot.evaluation.extract import protocol_spec, training_crop
from fastrot.evaluation.linear.online_rows import OnlineRows
from fastrot.evaluation.linear.probe import SAVE_SECONDS, ProbeRows, run_probe, training_ids
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import EvalConfig, LinearConfig
from fastrot.evaluation.result import Score
from fastrot.features.extract import ExtractOptions, extract_features, pass_size
from fastrot.features.forward import FeatureNetwork
from fastrot.features.spec import FeatureSpec
from fastrot.system.console import Say
from fastrot.system.machine import decoding_workers
from fastrot.weights.load import Backbone

MODE = "augmented"


@dataclass(frozen=True)
class OnlineSpec:
    """The specification of an online probe's rows.

    Attributes:
        train: features of the training images, with new crops in every epoch.
        test: test features, which may have more layers than are probed.
        loader: loader of the training images; ``auto``: the fastest.
    """

    train: FeatureSpec
    test: FeatureSpec
    loader: str

    @classmethod
    def settle(
        cls,
        backbone: Backbone,
        train: Dataset,
        test: Dataset,
        config: EvalConfig,
        device: torch.device,
        *,
        loader: str = "auto",
        test_layers: Sequence[str] | None = None,
    ) -> OnlineSpec:
        """Settle the features of both datasets; ``test_layers=None`` means the probed layers.

        Raises:
            FastrotError: as ``FeatureSpec.settle``.
        """
        linear, features = config.linear, config.features
        seen = FeatureSpec.settle(
            backbone,
            train,
            device,
            layers=features.layers,
            crop=training_crop(config, backbone),
            crops=0 if linear.augment == "none" else 1,
            seed=linear.seed,
            precision=features.precision,
        )
        shown = protocol_spec(config, backbone, test, device, layers=test_layers)
        return cls(seen, shown, loader)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Return everything the scores depend on besides the settings."""
        seen = {**self.train.fingerprint, "crops": "one an epoch", "decoding": self.loader}
        return {"mode": MODE, "train": seen, "test": dict(self.test.fingerprint)}


def evaluate_linear_online(
    backbone: Backbone,
    train: Dataset,
    test: Dataset,
    spec: OnlineSpec,
    config: EvalConfig,
    parts: PartialResults,
    say: Say,
    *,
    options: ExtractOptions | None = None,
    test_cache: Path | None = None,
    save_seconds: float = SAVE_SECONDS,
    world: World | None = None,
) -> list[Score]:
    """Return the top-1 and top-5 accuracy, in percent, of a linear classifier on each layer.

    Layers are those of ``config.features.layers``. If the process is killed, the same call resumes
    from the last saved step and gives bit-identical results. The order of the training images is
    random over the whole dataset.

    Args:
        backbone: the network; it is not modified.
        train: images to train on, with one label each.
        test: images to evaluate on, of the same classes, preprocessed with the test transform.
        spec: feature specification, resolved for this backbone, train and test.
        config: settings of the protocol.
        parts: where the main rank saves the state and the result.
        say: called with each line for the user.
        options: device, workers and progress; None: chosen for this machine.
        test_cache: folder of the test features, which may already exist; several ranks need one.
            None: a folder within that of ``parts``.
        save_seconds: minimum time between two saved states, in seconds.
        world: the joined ranks; None: only this process.

    Returns:
        The scores; empty on ranks other than the main one if they were already saved.

    Raises:
        BadDataError: labels are missing or do not fit (``match_single_classes``), or an image is
            bad.
        MismatchError: train and test differ in classes, or the cache holds different features.
        NonFiniteError: a loss is NaN or infinite.
        UsageError: the device or the loader is unknown.
        StorageError: something cannot be written.
    """
    linear, how, world = config.linear, options or ExtractOptions(), world or World()
    match = match_single_classes(train, test, (len(train), len(test)))
    ids, notes = training_ids(np.asarray(train.labels, np.int64), config)
    chosen = train if linear.subset is None else DatasetSubset(train, ids)
    if linear.optimum:
        say("linear.optimum: left out because it needs cached features; use a cached mode")

    @contextmanager
    def rows(device: torch.device) -> Iterator[ProbeRows]:
        with ExitStack() as stack:
            folder = test_cache or parts.file("test-features", "")
            if folder is None:
                folder = Path(stack.enter_context(TemporaryDirectory())) / "test"
            shown = extract_features(backbone, test, folder, spec.test, how, world=world)
            reader, name = stack.enter_context(
                _reader(chosen, spec, linear, device, how.workers, world)
            )
            say(f"linear probe: {len(chosen):,} images per epoch, decoded by the loader {name}")
            made = OnlineRows(
                stack.enter_context(FeatureNetwork(backbone, spec.train, device)),
                reader,
                backbone,
                seed=linear.seed,
                coloured=linear.augment == "rrc_jitter_lighting",
                images_a_pass=pass_size(spec.train.crop.size, device),
                world=world,
            )
            details = {"augment": linear.augment, "loader": name, **notes}
            yield ProbeRows(made, shown.translated(match), MODE, details)

    return run_probe(
        "linear-augmented",
        rows,
        match.count,
        config,
        parts,
        say,
        device=how.device,
        save_seconds=save_seconds,
        world=world,
    )


@contextmanager
def _reader(
    train: Dataset,
    spec: OnlineSpec,
    linear: LinearConfig,
    device: torch.device,
    workers: int | None,
    world: World,
) -> Iterator[tuple[Loader, str]]:
    """Open the loader of this rank's training images; yield it and its name."""
    if workers is None:
        on_gpu = device.type == "cuda"
        workers = decoding_workers(on_gpu=on_gpu, local_ranks=world.local_size)
    source = LoaderSpec(
        train,
        Sampler(
            len(train),
            linear.batch,
            seed=linear.seed,
            drop_last=False,
            rank=world.rank,
            world=world.size,
        ),
        spec.train.crop,
        linear.seed,
        device,
        workers=workers,
    )
    images = len(train) * linear.epochs // world.size
    name = choose_loader(source, images=images)[0] if spec.loader == "auto" else spec.loader
    loader = build_loader(name, source)
    try:
        yield loader, name
    finally:
        loader.close()
