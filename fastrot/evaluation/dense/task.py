"""A dense task as the training step sees it: named losses of a model on a batch.

torch's generator is seeded for each batch from (seed, position, rank): torchvision samples anchors
and regions by ``randperm``, and draws sides, so a resumed run repeats what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from fastrot.data.sampling.philox import Stream, philox_u64
from fastrot.evaluation.dense.loader import DenseBatch


class LossModel(Protocol):
    """Computes losses of a batch, by name; their sum is minimised."""

    def __call__(self, model: nn.Module, batch: DenseBatch) -> dict[str, torch.Tensor]:
        """Return the losses."""
        ...


@dataclass(frozen=True)
class DenseInputs:
    """The inputs of one forward pass."""

    batch: DenseBatch

    @property
    def items(self) -> int:
        """Return the number of images."""
        return len(self.batch.images)


@dataclass(frozen=True)
class Losses:
    """The losses of one forward pass, on the device.

    Attributes:
        parts: means over the images, by name.
        images: N.
    """

    parts: Mapping[str, torch.Tensor]
    images: int

    @property
    def loss(self) -> torch.Tensor:
        """Return their sum."""
        return torch.stack(list(self.parts.values())).sum()

    def sums(self) -> dict[str, torch.Tensor]:
        """Return the losses times the number of images."""
        parts = {"loss": self.loss, **self.parts}
        return {name: value.detach().double() * self.images for name, value in parts.items()}


class DenseTask:
    """Computes the losses of a batch.

    Args:
        losses: of a model and a batch.
        device: device of the model.
        autocast_dtype: half precision of the forward pass; None: that of the model.
        seed: seed of what a model draws in training.
        rank: this rank.
    """

    def __init__(
        self,
        losses: LossModel,
        device: torch.device,
        autocast_dtype: torch.dtype | None,
        *,
        seed: int,
        rank: int,
    ) -> None:
        self._losses, self._device, self._dtype = losses, device, autocast_dtype
        self._seed, self._rank = seed, rank

    def inputs(self, batch: DenseBatch) -> DenseInputs:
        """Return the inputs of the forward pass for a batch."""
        return DenseInputs(batch)

    def predict(self, model: nn.Module, inputs: DenseInputs) -> Losses:
        """Run the model on a batch and return its losses."""
        batch = inputs.batch
        key = philox_u64(self._seed, self._rank, [batch.position], Stream.DETECTOR)
        torch.manual_seed(int(key[0]) >> 1)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            parts = self._losses(model, batch)
        return Losses(parts, inputs.items)
