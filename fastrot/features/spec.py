"""Everything that features depend on, settled before anything is computed.

The test transforms resize one box of the image to the crop in a single step. The published ones
use two steps of Pillow: the short side to 256, then the centre or a resize to the square. The
differences were measured, decoding included (pixels from 0 to 255; features of a ResNet-18
trained on rotations: norm of the difference over the norm, mean of 32 photos, the worst layer):

========================================== ==== ======= ======== =============
photos, transform                          mean largest features worst feature
========================================== ==== ======= ======== =============
imagenet-300, centre 224 of 256            1.84 90      0.8 %    1.7 %
imagenet-300, squash to 224                1.45 84      1.8 %    4.0 %
imagenette-128, centre 224 of 256          0.27 50      0.4 %    0.6 %
imagenette-128, squash to 224              1.17 49      2.6 %    5.6 %
imagenette-128, centre 112 of 128          0    0       0        0
imagenette-128, squash to 112              0.19 1       0.2 %    0.3 %
========================================== ==== ======= ======== =============

A centre crop differs because its box covers whole pixels of the image, while two steps cut
fractions of them; squashing differs because two resizes blur more than one.

Shapes: S side of a crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash

from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.dataset import Dataset
from fastrot.data.loader import LoaderSpec, choose_loader
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler
from fastrot.data.subset import DatasetSubset
from fastrot.errors import BadDataError, UsageError
from fastrot.models.precision import resolve_precision
from fastrot.system.fingerprint import plain
from fastrot.weights.load import Backbone

DEFINITION = 2
"""Version of the computation of a row, given the rest of the fingerprint. It is raised whenever
boxes, resizing or pooling change, so that a cache of an earlier fastrot is refused. 2: the centre
crop's box follows torchvision's two steps."""

_RANDOM = ("random_resized", "padded", "center_random")


@dataclass(frozen=True)
class FeatureSpec:
    """Definition of a dataset's features; ``ExtractOptions`` says how they are computed.

    Attributes:
        layers: stages of the backbone, in order of depth.
        crop: how a crop is made.
        crops: K random crops per sample; 0: the test transform.
        seed: seed of the random crops.
        loader: name of the loader.
        precision: fp32, bf16 or fp16.
        fingerprint: plain values that the features depend on, including weights and data, but not
            the number of ranks, the batch and the number of workers.
    """

    layers: tuple[str, ...]
    crop: Crop
    crops: int
    seed: int
    loader: str
    precision: str
    fingerprint: Mapping[str, Any]

    @classmethod
    def settle(
        cls,
        backbone: Backbone,
        samples: Dataset,
        device: torch.device,
        *,
        layers: Sequence[str],
        crop: Crop,
        crops: int = 0,
        seed: int = 0,
        loader: str = "auto",
        precision: str = "auto",
    ) -> FeatureSpec:
        """Settle everything that features depend on, before any is computed.

        Args:
            backbone: network that computes the features.
            samples: the dataset.
            device: device that computes them.
            layers: stages of the backbone, including ``pool``, in any order.
            crop: the test transform; with ``crops``: how a crop is drawn. If nothing about it is
                random, only its size is used: random resized crops, flipped with probability 0.5.
            crops: K random crops per sample, those of epochs 0 to K - 1; 0: the test transform.
            seed: seed of the random crops.
            loader: ``auto`` (native, or reference where native cannot run) or the name of a
                loader; native decodes exactly.
            precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: fp32 on a CPU; bf16 on a GPU
                that supports it, else fp16.

        Raises:
            UsageError: a layer or another argument is invalid.
            BadDataError: the dataset does not have one label per sample.
        """
        known = backbone.model.stage_names
        if unknown := [name for name in layers if name not in known]:
            raise UsageError(f"layers {', '.join(unknown)}: this backbone has {', '.join(known)}")
        if not layers or len(samples) < 1 or crops < 0:
            raise UsageError(
                f"{len(layers)} layers, {len(samples)} samples, {crops} crops: at least one "
                "layer and one sample are needed, and crops must not be negative"
            )
        if len(samples.labels) != len(samples):
            raise BadDataError(
                f"{samples.path}: {len(samples.labels)} labels for {len(samples)} samples; each "
                "sample needs one: check its list of labels"
            )
        if crops and crop.kind not in _RANDOM:
            crop = Crop("random_resized", crop.size, flip=0.5)
        elif not crops and (crop.kind in _RANDOM or crop.flip):
            raise UsageError(f"crop {crop.kind!r} is random; say how many with crops=K")
        if loader == "auto":
            order = Sampler(len(samples), 1, mode="sequential", drop_last=False)
            name, _ = choose_loader(LoaderSpec(samples, order, crop, seed, device, 0))
            loader = "native" if name == "native" else "reference"
        if loader == "synthetic":
            raise UsageError("loader 'synthetic' reads no images; choose another for features")
        precision = resolve_precision(precision, device)
        chosen = tuple(name for name in known if name in layers)
        fingerprint = {
            "definition": DEFINITION,
            "weights": backbone.digest,
            "mean": backbone.mean,
            "std": backbone.std,
            "data": _data_digest(samples),
            "samples": len(samples),
            "layers": chosen,
            "crop": _crop_fields(crop),
            "crops": crops,
            "seed": seed if crops else None,
            "decoding": f"{loader}, exact",
            "precision": precision,
        }
        return cls(chosen, crop, crops, seed, loader, precision, plain(fingerprint))

    def is_of(self, backbone: Backbone, samples: Dataset) -> bool:
        """Return whether this specification was made for this backbone and these samples."""
        saved = self.fingerprint
        return bool(saved["weights"] == backbone.digest and saved["data"] == _data_digest(samples))


def _crop_fields(crop: Crop) -> dict[str, Any]:
    """Return the fields of a crop that matter for its kind."""
    fields: dict[str, Any] = {"kind": crop.kind, "size": crop.size}
    if crop.kind in ("center", "center_random"):
        fields["resize"] = crop.resize
    if crop.kind == "padded":
        fields["padding"] = crop.padding
    if crop.kind == "random_resized":
        fields |= {"scale": crop.scale, "ratio": crop.ratio}
    return fields | ({"flip": crop.flip} if crop.kind in _RANDOM else {})


def _data_digest(samples: Dataset) -> str:
    """Return a digest of the dataset, of the chosen label field and of the chosen samples."""
    if isinstance(samples, BetonDataset):
        return samples.digest + samples.label_choice
    if not isinstance(samples, DatasetSubset):
        return samples.digest
    ids = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(samples.ids).tobytes())
    return f"{_data_digest(samples.dataset)} {ids}"
