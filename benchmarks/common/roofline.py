"""Lower bound on the time of a training step: every kernel at full bandwidth or full speed.

Kernels run one after another, so the bound is the sum over all kernels of the larger of
bytes / bandwidth and FLOPs / peak. Which kernels there are depends on the level of fusion
(``kernel_work.py``).

Example:
    >>> layers = layers_of(ModelConfig(name="resnet50"), 224)
    >>> fused = bounds(layers, peak=790e12, bandwidth=4.3e12, batch=256)["a2"]
    >>> round(fused.views_per_second, -2)
    10200.0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastrot.benchmarks.common.kernel_work import CONVS, LEVELS, kernels
from fastrot.benchmarks.common.layer_shapes import VIEWS, Layer, trace
from fastrot.config import ModelConfig
from fastrot.models.backbones import build_model

REFERENCE = {"peak": 790e12, "bandwidth": 4.3e12}
"""Speeds of an H200: FLOP/s of half-precision matrices, bytes/s of a copy (``performance.md``)."""


@dataclass(frozen=True)
class Bound:
    """The bound of one level."""

    level: str  # key of ``LEVELS``, or ``convs``
    title: str  # display name
    seconds: float  # minimum time per view
    nbytes: float  # bytes per view
    flops: float  # FLOPs per view
    memory_share: float  # fraction of the seconds in kernels that are limited by bandwidth

    @property
    def views_per_second(self) -> float:
        """Return the maximum rate."""
        return 1 / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "level": self.level,
            "title": self.title,
            "views_per_s": round(self.views_per_second, 1),
            "megabytes": round(self.nbytes / 1e6, 3),
            "gflop": round(self.flops / 1e9, 3),
            "memory_share": round(self.memory_share, 4),
        }


def layers_of(config: ModelConfig, resolution: int) -> list[Layer]:
    """Return the layers of a rotation network for views of (3, resolution, resolution)."""
    with torch.device("meta"):
        model = build_model(config, seed=0)
    return trace(model, (3, resolution, resolution))


def step_flops(layers: Sequence[Layer]) -> int:
    """Return the FLOPs per view of a training step: forward, gradients of inputs and weights."""
    return sum(layer.flops * (2 if VIEWS in layer.inputs else 3) for layer in layers)


def bounds(
    layers: list[Layer],
    *,
    peak: float,
    bandwidth: float,
    batch: int,
    value_bytes: int = 2,
    levels: Sequence[str] = ("a0", "a2", "c", "b", CONVS),
) -> dict[str, Bound]:
    """Return the bounds of a training step at these levels.

    Args:
        layers: result of ``layer_shapes.trace``.
        peak: FLOP/s of matrix multiplication in the precision of the activations.
        bandwidth: bytes/s of memory.
        batch: number of views.
        value_bytes: bytes per activation, per gradient of one, and per copy of a weight: 2 or 4.
        levels: keys of ``LEVELS``, and ``convs``.
    """
    found = {}
    for name in levels:
        works = kernels(layers, name, batch=batch, value_bytes=value_bytes)
        seconds = [work.seconds(peak, bandwidth) for work in works]
        memory = (s for w, s in zip(works, seconds, strict=True) if w.nbytes / bandwidth >= s)
        found[name] = Bound(
            level=name,
            title=LEVELS[name].title if name in LEVELS else "convolutions alone",
            seconds=sum(seconds),
            nbytes=sum(work.nbytes for work in works),
            flops=sum(work.flops for work in works),
            memory_share=sum(memory) / sum(seconds),
        )
    return found
