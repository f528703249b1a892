"""``fastrot extract``: features of a data set, from a checkpoint, in one command."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fastrot.config import ModelConfig, load_config
from fastrot.data.open import open_dataset
from fastrot.data.sampling.crops import Crop
from fastrot.distributed.world import World, joined, pick_device, read_world
from fastrot.evaluation.protocol import EvalConfig, load_protocol
from fastrot.features.cache import FeatureCache
from fastrot.features.extract import extract_features
from fastrot.features.spec import protocol_crop
from fastrot.system.machine import usable_cores
from fastrot.system.yaml_config import Override, override_key
from fastrot.weights.load import Backbone, load_backbone

DEFAULT_PROTOCOL = "linear"


def scoring_crop(config: EvalConfig, backbone: Backbone) -> Crop:
    """The test transform of a protocol, at the backbone's resolution where it names none."""
    features = config.features
    return protocol_crop(
        features.transform, backbone, resolution=features.resolution, resize=features.resize
    )


def training_crop(config: EvalConfig, backbone: Backbone) -> Crop:
    """How ``linear.augment`` crops: the test transform's sizes, drawn at random.

    ``rrc`` is torchvision's RandomResizedCrop with a flip in two; ``center_random`` is
    Resize(resize), CenterCrop(resize), RandomCrop(resolution) and a flip in two, as MMSelfSup 0.x
    trains on Places205; ``none`` is the test transform itself.
    """
    test = scoring_crop(config, backbone)
    if config.linear.augment == "none":
        return test
    if config.linear.augment == "center_random":
        # A protocol that squashes its test images has no short side to resize.
        resize = test.resize if test.kind == "center" else round(test.size * 8 / 7)
        return replace(test, kind="center_random", resize=resize, flip=0.5)
    return Crop("random_resized", test.size, flip=0.5)


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction left.

    Attributes:
        cache: the features.
        seconds: wall time of this start, also where all features were there.
    """

    cache: FeatureCache
    seconds: float
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        cache = self.cache
        return {
            "cache": str(cache.path),
            "digest": cache.digest,
            "identity": cache.identity,
            "samples": cache.num_samples,
            "crops": cache.crops,
            "layers": cache.manifest["layers"],
            "bytes": {name: self._size(name) for name in cache.layers},
            "made_by": cache.manifest["made_by"],
            "seconds": round(self.seconds, 3),
        }

    def show(self, console: Console) -> None:
        """Print it for people."""
        cache, made = self.cache, self.cache.manifest["made_by"]
        crops = f", {cache.crops} crops each" if cache.crops else ""
        console.print(
            f"{cache.path}: {cache.num_samples:,} samples{crops} of {made.get('data', 'arrays')}\n"
            f"weights: {made.get('source', cache.identity.get('weights', 'unknown'))}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        table = Table("layer", "values", "pooling", "MB")
        for name, info in cache.layers.items():
            shape = f"{info.channels} x {info.grid} x {info.grid} = {info.dim:,}"
            table.add_row(name, shape, info.window, f"{self._size(name) / 1e6:,.1f}")
        console.print(table)

    def _size(self, layer: str) -> int:
        return (self.cache.path / f"{layer}.npy").stat().st_size


def extract(
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    layers: Sequence[str] | None = None,
    protocol: str | None = None,
    crops: int = 0,
    random_init: bool = False,
    channel_order: str = "rgb",
    model: str | None = None,
    overrides: Sequence[Override] = (),
    seed: int = 0,
    loader: str = "auto",
    device: str = "auto",
    batch: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> ExtractReport:
    """Extract features, or go on with it; under torchrun on all ranks.

    Args:
        checkpoint: run, checkpoint folder or weight file.
        data: a ``.beton`` file, a folder, or tar shards.
        out: the cache's folder.
        layers: stages; None: the protocol's, or without a protocol all of the backbone.
        protocol: whose test transform and layers are taken; None: those of ``linear``.
        crops: K random crops of each image instead of the test transform.
        random_init: of the same architecture, instead of the trained weights.
        channel_order: ``bgr`` for weights trained on BGR images.
        model: architecture of a weight file; None: guessed.
        overrides: ``features.resolution=96`` and the like, and ``model.width=32`` of a weight
            file's architecture.
        seed: of the random crops (``random_init`` takes the run's, 0 for a weight file).
        loader: ``auto`` or an engine.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch: images of a forward pass; None: by size and device.
        workers: decoding threads; None: by the cores.
        progress: show it on standard error.

    Raises:
        FastrotError: with the exit code of the failure.
    """
    started = time.monotonic()
    of_model, of_protocol = divide_overrides(overrides)
    config = load_protocol(protocol or DEFAULT_PROTOCOL, of_protocol)
    backbone = load_backbone(
        checkpoint,
        model=architecture(model, of_model),
        channel_order=channel_order,
        random_init=random_init,
    )
    cache = extract_for(
        config,
        backbone,
        data,
        out,
        layers=layers or _layers(config, protocol, backbone.model.stage_names),
        crops=crops,
        seed=seed,
        loader=loader,
        device=device,
        batch=batch,
        workers=workers,
        progress=progress,
    )
    return ExtractReport(cache, time.monotonic() - started)


def extract_for(
    config: EvalConfig,
    backbone: Backbone,
    data: Path,
    out: Path,
    *,
    layers: Sequence[str],
    crops: int,
    seed: int = 0,
    loader: str = "auto",
    device: str = "auto",
    batch: int | None = None,
    workers: int | None = None,
    progress: bool = True,
    world: World | None = None,
) -> FeatureCache:
    """Features of a loaded backbone, as a protocol sees images.

    Args:
        config: of the protocol.
        backbone: loaded once, so that training and test features are of the same weights, also
            while a run goes on.
        data: as for ``extract``.
        out: the cache's folder.
        layers: stages.
        crops: K, or 0.
        seed: of the random crops.
        loader: as for ``extract``.
        device: as for ``extract``.
        batch: as for ``extract``.
        workers: as for ``extract``.
        progress: show it on standard error.
        world: the ranks; None: torchrun's.

    Raises:
        FastrotError: with the exit code of the failure.
    """
    world = world or read_world()
    target = pick_device(device, world)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // world.local_size))
    with joined(world, target):
        return extract_features(
            backbone,
            open_dataset(data),
            out,
            layers=layers,
            crop=_crop(config, backbone, crops),
            crops=crops,
            seed=seed,
            loader=loader,
            device=device,
            batch=batch,
            workers=workers,
            precision=config.features.precision,
            world=world,
            progress=progress,
        )


def _crop(config: EvalConfig, backbone: Backbone, crops: int) -> Crop:
    """Of the test transform; random crops of it are resized, but for Places205's protocol."""
    if crops and config.linear.augment == "center_random":
        return training_crop(config, backbone)
    features = config.features
    return protocol_crop(
        features.transform, backbone, resolution=features.resolution, resize=features.resize
    )


def _layers(config: EvalConfig, protocol: str | None, stages: tuple[str, ...]) -> tuple[str, ...]:
    return stages if protocol is None else config.features.layers


def divide_overrides(overrides: Sequence[Override]) -> tuple[list[Override], list[Override]]:
    """Those of a weight file's architecture (``model.width=32``), and those of the protocol."""
    of_model = [item for item in overrides if override_key(item).startswith("model.")]
    return of_model, [item for item in overrides if item not in of_model]


def architecture(name: str | None, overrides: Sequence[Override]) -> ModelConfig | None:
    """Of a weight file, as the command line names it; None: to be guessed."""
    if name is None and not overrides:
        return None
    named: list[Override] = [] if name is None else [("model.name", name)]
    return load_config(None, [*named, *overrides]).model
