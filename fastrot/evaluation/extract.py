"""``fastrot extract``, and how a protocol sees images: its crops, its layers, a backbone."""

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

from fastrot.config import load_config
from fastrot.data.dataset import Dataset
from fastrot.data.open import open_dataset
from fastrot.data.sampling.crops import Crop
from fastrot.distributed.world import World, joined, pick_device, read_world
from fastrot.errors import UsageError
from fastrot.evaluation.protocol import EvalConfig, load_protocol
from fastrot.features.cache import FeatureCache
from fastrot.features.extract import ExtractOptions, extract_features
from fastrot.features.spec import FeatureSpec
from fastrot.system.machine import usable_cores
from fastrot.system.yaml_config import Override, override_key
from fastrot.weights.load import Backbone, load_backbone

DEFAULT_PROTOCOL = "linear"


@dataclass(frozen=True, kw_only=True)
class BackboneRequest:
    """The backbone and the settings that a command names.

    Attributes:
        checkpoint: run, checkpoint folder or weight file.
        channel_order: ``bgr`` for weights trained on BGR images.
        model: architecture of a weight file; None: guessed.
        random_init: take the random initialisation of the same architecture instead of the
            trained weights: that of the run's seed, 0 for a weight file.
        overrides: ``features.resolution=96`` and the like of the protocol, and ``model.width=32``
            of a weight file's architecture.
        weights: of a file that holds a network as trained and averaged: ``plain`` or ``ema``;
            None: as published protocols take it.
        follow_symlinks: also follow links that lead out of a folder of images.
        progress: show bars.
    """

    checkpoint: Path
    channel_order: str = "rgb"
    model: str | None = None
    random_init: bool = False
    overrides: Sequence[Override] = ()
    weights: str | None = None
    follow_symlinks: bool = False
    progress: bool = True

    def load_backbone(self) -> Backbone:
        """Load the backbone.

        Raises:
            FastrotError: as ``weights.load.load_backbone``.
        """
        of_model, _ = self._divided()
        named: list[Override] = [] if self.model is None else [("model.name", self.model)]
        architecture = [*named, *of_model]
        return load_backbone(
            self.checkpoint,
            model=load_config(None, architecture).model if architecture else None,
            channel_order=self.channel_order,
            random_init=self.random_init,
            weights=self.weights,
        )

    def load_protocol(self, name_or_path: str) -> EvalConfig:
        """Read a protocol with the overrides that are for it.

        Raises:
            UsageError: an unknown protocol, or a setting that breaks a rule.
        """
        return load_protocol(name_or_path, self._divided()[1])

    def _divided(self) -> tuple[list[Override], list[Override]]:
        """Overrides of a weight file's architecture, and those of the protocol."""
        of_model = [item for item in self.overrides if override_key(item).startswith("model.")]
        return of_model, [item for item in self.overrides if item not in of_model]


@dataclass(frozen=True, kw_only=True)
class ExtractRequest(BackboneRequest):
    """``fastrot extract`` as it was asked for.

    Attributes:
        data: a ``.beton`` file, a folder, or tar shards.
        out: the cache's folder.
        layers: stages; None: the protocol's, or without a protocol all of the backbone.
        protocol: whose test transform and layers are taken; None: those of ``linear``.
        crops: K random crops of each image instead of the test transform.
    """

    data: Path
    out: Path
    layers: tuple[str, ...] | None = None
    protocol: str | None = None
    crops: int = 0


def scoring_crop(config: EvalConfig, backbone: Backbone) -> Crop:
    """The test transform of a protocol, at the backbone's resolution where it names none.

    ``center`` resizes the short side (by default to 8/7 of the resolution, which is 256 at 224)
    and takes the centre square; ``squash`` takes the whole image to a square.

    Raises:
        UsageError: the crop is larger than what it is cut out of.
    """
    features = config.features
    side = features.resolution or backbone.resolution
    if features.transform == "squash":
        return Crop("whole", side)
    if features.resize and features.resize < side:
        raise UsageError(
            f"features.resize={features.resize} must be at least the resolution, which is {side}, "
            "that is cut out of it"
        )
    return Crop("center", side, resize=features.resize or round(side * 8 / 7))


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
            "identity": cache.fingerprint,
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
            f"weights: {made.get('source', cache.fingerprint.get('weights', 'unknown'))}",
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


def protocol_spec(
    config: EvalConfig,
    backbone: Backbone,
    samples: Dataset,
    device: torch.device,
    *,
    layers: Sequence[str] | None = None,
    crops: int = 0,
) -> FeatureSpec:
    """What the features of a data set are, as a protocol sees images.

    Args:
        config: of the protocol.
        backbone: loaded once, so that training and test features are of the same weights, also
            while a run goes on.
        samples: the data set.
        device: where they are computed.
        layers: stages; None: the protocol's.
        crops: K random crops of each image, resized ones but for ``center_random``; 0: the test
            transform.

    Raises:
        FastrotError: as ``FeatureSpec.settle``.
    """
    drawn = crops and config.linear.augment == "center_random"
    return FeatureSpec.settle(
        backbone,
        samples,
        device,
        layers=layers or config.features.layers,
        crop=training_crop(config, backbone) if drawn else scoring_crop(config, backbone),
        crops=crops,
        precision=config.features.precision,
    )


def extract(request: ExtractRequest) -> ExtractReport:
    """Extract features, or go on with it; under torchrun on all ranks.

    Raises:
        FastrotError: with the exit code of the failure.
    """
    started = time.monotonic()
    config = request.load_protocol(request.protocol or DEFAULT_PROTOCOL)
    backbone, world = request.load_backbone(), read_world()
    layers = request.layers or (
        backbone.model.stage_names if request.protocol is None else config.features.layers
    )
    device = pick_device("auto", world)
    share_cores(world)
    with joined(world, device):
        samples = open_dataset(request.data, follow_symlinks=request.follow_symlinks)
        spec = protocol_spec(config, backbone, samples, device, layers=layers, crops=request.crops)
        options = ExtractOptions(progress=request.progress)
        cache = extract_features(backbone, samples, request.out, spec, options, world=world)
    return ExtractReport(cache, time.monotonic() - started)


def share_cores(world: World) -> None:
    """Compute with this rank's share of the machine's cores, unless the user says how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // world.local_size))
