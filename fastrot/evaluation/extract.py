"""``fastrot extract``, and the crops, layers and backbone with which a protocol sees images."""

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
from fastrot.system.console import print_lines
from fastrot.system.machine import usable_cores
from fastrot.system.yaml_config import Override, override_key
from fastrot.weights.load import Backbone, load_backbone

DEFAULT_PROTOCOL = "linear"


@dataclass(frozen=True, kw_only=True)
class BackboneRequest:
    """The backbone and the settings that a command line gives.

    Attributes:
        checkpoint: run, checkpoint folder or weight file.
        channel_order: ``bgr`` for weights trained on BGR images.
        model: architecture of a weight file; None: inferred.
        random_init: use the random initialisation of the same architecture instead of the
            trained weights: with the run's seed, or seed 0 for a weight file.
        overrides: settings of the protocol, such as ``features.resolution=96``, and of a weight
            file's architecture, such as ``model.width=32``.
        weights: ``plain`` or ``ema``, for a file with both the trained and the averaged network;
            None: the one that published protocols use.
        follow_symlinks: also follow links that lead out of a folder of images.
        progress: show progress bars.
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
        """Read a protocol and apply its overrides.

        Raises:
            UsageError: the protocol is unknown, or a setting breaks a rule.
        """
        return load_protocol(name_or_path, self._divided()[1])

    def _divided(self) -> tuple[list[Override], list[Override]]:
        """Return the overrides of a weight file's architecture, and those of the protocol."""
        of_model = [item for item in self.overrides if override_key(item).startswith("model.")]
        return of_model, [item for item in self.overrides if item not in of_model]


@dataclass(frozen=True, kw_only=True)
class ExtractRequest(BackboneRequest):
    """The request of ``fastrot extract``.

    Attributes:
        data: a ``.beton`` file, a folder, or tar shards.
        out: folder of the cache.
        layers: stages; None: the protocol's, or without a protocol all stages of the backbone.
        protocol: protocol whose test transform and layers are used; None: ``linear``.
        crops: K random crops per image; 0: the test transform.
    """

    data: Path
    out: Path
    layers: tuple[str, ...] | None = None
    protocol: str | None = None
    crops: int = 0


def scoring_crop(config: EvalConfig, backbone: Backbone) -> Crop:
    """Return the test transform of a protocol, by default at the backbone's resolution.

    ``center`` resizes the short side (by default to 8/7 of the resolution, which is 256 at 224)
    and crops the centre square; ``squash`` resizes the whole image to a square.

    Raises:
        UsageError: the crop is larger than the resized image.
    """
    features = config.features
    side = features.resolution or backbone.resolution
    if features.transform == "squash":
        return Crop("whole", side)
    if features.resize and features.resize < side:
        raise UsageError(
            f"features.resize={features.resize} must be at least the resolution of the crop, "
            f"which is {side}"
        )
    return Crop("center", side, resize=features.resize or round(side * 8 / 7))


def training_crop(config: EvalConfig, backbone: Backbone) -> Crop:
    """Return the crop of ``linear.augment``: random, with the sizes of the test transform.

    ``rrc`` is torchvision's RandomResizedCrop, flipped with probability 0.5; ``center_random`` is
    Resize(resize), CenterCrop(resize), RandomCrop(resolution), flipped with probability 0.5, as
    MMSelfSup 0.x trains on Places205; ``none`` is the test transform itself.
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
    """The outcome of an extraction.

    Attributes:
        cache: the features.
        seconds: wall time of this command, even if it found all features finished.
    """

    cache: FeatureCache
    seconds: float
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
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
        """Print the outcome."""
        cache, made = self.cache, self.cache.manifest["made_by"]
        crops = f", {cache.crops} crops each" if cache.crops else ""
        samples = f"{cache.num_samples:,} samples{crops} of {made.get('data', 'arrays')}"
        source = made.get("source", cache.fingerprint.get("weights", "unknown"))
        print_lines(console, [f"{cache.path}: {samples}", f"weights: {source}"])
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
    """Return the specification of a dataset's features, as a protocol sees its images.

    Args:
        config: settings of the protocol.
        backbone: loaded once, so that training and test features have the same weights even while
            a run continues.
        samples: the dataset.
        device: device that computes the features.
        layers: stages; None: the protocol's.
        crops: K random crops per image, resized unless augment is ``center_random``; 0: the test
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
    """Extract features or resume an extraction; under torchrun on all ranks.

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
    """Compute on this rank's share of the cores, unless the user has set OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // world.local_size))
