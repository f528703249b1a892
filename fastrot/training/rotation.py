"""The pretext task: which of four quarter turns was applied?

Class k means k quarter turns COUNTER-clockwise (``torch.rot90(image, k)``), as in RotNet and
MMSelfSup 0.x; MMSelfSup 1.x turns clockwise, so exchange classes 1 and 3 of its heads. Rows are
image-major: row ``n * V + v`` is view v of image n. Crop and flip come before the turn, and all
views of an image share them.

Shapes: N source images, V views per image (4, or 1), S side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fastrot.config import Config
from fastrot.data.loader import Batch
from fastrot.kernels.rotate.op import rotate_views
from fastrot.kernels.rotate.reference import normalisation_table
from fastrot.models.backbones import TURNS, RotationModel


class Inputs(NamedTuple):
    """The inputs of one forward pass, on the device.

    Attributes:
        images: source images of shape (N, S, S, 3), uint8.
        turns: quarter turns of the views, of shape (N, V), uint8.
        flips: whether each image is flipped, of shape (N,), bool.
    """

    images: torch.Tensor
    turns: torch.Tensor
    flips: torch.Tensor

    @property
    def items(self) -> int:
        """Return the number of views."""
        return self.turns.numel()


@dataclass(frozen=True)
class Prediction:
    """The outputs of one forward pass; everything stays on the device.

    Attributes:
        loss: mean cross-entropy over the views, scalar, float32 (float64 if the model is).
        correct: whether the prediction is correct, of shape (N * V,), bool.
        targets: true turns of shape (N * V,), int64.
        logits: logits of shape (N * V, 4).
    """

    loss: torch.Tensor
    correct: torch.Tensor
    targets: torch.Tensor
    logits: torch.Tensor

    def sums(self) -> dict[str, torch.Tensor]:
        """Return the losses and the correct predictions, summed over the views."""
        return {
            "loss": self.loss.detach().double() * len(self.targets),
            "accuracy": self.correct.sum(),
        }


class RotationTask:
    """Computes the loss of a batch.

    Args:
        config: settings of the run.
        device: device of the model.
        autocast_dtype: half precision of the forward pass; None: that of the model, float32 or
            float64 (train.precision=fp64).
        channels: channels of the views: 3, or 4 with one of zeros, which suits tensor cores.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        autocast_dtype: torch.dtype | None,
        *,
        channels: int = 3,
    ) -> None:
        self.views_per_image = TURNS if config.pretext.views == "all" else 1
        self._device = device
        self._channels = channels
        self._autocast_dtype = autocast_dtype
        self._double = config.train.precision == "fp64"
        dtype = autocast_dtype or torch.float32
        self._table = normalisation_table(config.data.mean, config.data.std, dtype).to(device)

    def inputs(self, batch: Batch) -> Inputs:
        """Return the inputs of the forward pass for a batch, whose turns its loader drew."""
        return Inputs(batch.images, batch.turns, batch.flips)

    def predict(self, model: torch.nn.Module, inputs: Inputs) -> Prediction:
        """Rotate, run the model and compare, all on the device.

        Args:
            model: maps views (N * V, 3 or 4, S, S) to logits (N * V, 4).
            inputs: images and their turns.
        """
        targets = inputs.turns.flatten().long()
        logits = self._run(model, inputs)
        loss = F.cross_entropy(logits if self._double else logits.float(), targets)
        return Prediction(loss, logits.argmax(1) == targets, targets, logits)

    def embed(self, model: RotationModel, batch: Batch) -> torch.Tensor:
        """Return pooled backbone features of the unturned images, of shape (N, D), float32."""
        turns = torch.zeros(len(batch.images), 1, dtype=torch.uint8, device=self._device)
        return self._run(model.backbone, Inputs(batch.images, turns, batch.flips)).float()

    def _run(self, module: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
        images, turns, flips = inputs
        views = rotate_views(images, turns, flips, self._table, channels=self._channels)
        if self._double:
            views = views.double()
        with torch.autocast(
            self._device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None
        ):
            output: torch.Tensor = module(views)
        return output
