"""What a network asks of the links: its gradients in order, its batch norms, its work by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastrot.benchmarks.common.layer_shapes import VIEWS
from fastrot.benchmarks.common.roofline import layers_of
from fastrot.config import ModelConfig
from fastrot.models.backbones import build_model

GRADIENT_BYTES = 4
"""Of a parameter and its gradient: autocast keeps both in float32."""


@dataclass(frozen=True)
class PlannedLayer:
    """One layer.

    Attributes:
        name: of the module.
        flops: of one view in the backward pass.
        gradients: bytes of the gradient of each of its parameters.
        channels: of a batch norm; 0: it is none.
    """

    name: str
    flops: int
    gradients: tuple[int, ...]
    channels: int


@dataclass(frozen=True)
class PlannedNetwork:
    """All of it, in the order of the forward pass.

    Attributes:
        layers: those with work or parameters.
        forward_flops: of one view.
    """

    layers: tuple[PlannedLayer, ...]
    forward_flops: int

    @property
    def parameters(self) -> int:
        """How many."""
        return self.gradient_bytes // GRADIENT_BYTES

    @property
    def gradient_bytes(self) -> int:
        """Of all gradients."""
        return sum(sum(layer.gradients) for layer in self.layers)

    @property
    def backward_flops(self) -> int:
        """Of one view."""
        return sum(layer.flops for layer in self.layers)

    @property
    def norms(self) -> list[int]:
        """Channels of every batch norm, in the order of the forward pass."""
        return [layer.channels for layer in self.layers if layer.channels]


def planned_network(config: ModelConfig, resolution: int) -> PlannedNetwork:
    """Look at a rotation network without computing anything.

    Args:
        config: of the model.
        resolution: side of the views, in pixels.
    """
    with torch.device("meta"):
        model = build_model(config, seed=0)
    gradients: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0].removeprefix("backbone.")
        gradients.setdefault(module, []).append(GRADIENT_BYTES * parameter.numel())
    traced = layers_of(config, resolution)
    layers = tuple(
        PlannedLayer(
            name=layer.name,
            # the gradient of the views is not needed
            flops=layer.flops * (1 if VIEWS in layer.inputs else 2),
            gradients=tuple(gradients.pop(layer.name, ())),
            channels=layer.shape_in[0] if layer.kind == "norm" else 0,
        )
        for layer in traced
    )
    assert not gradients, f"parameters of no layer: {sorted(gradients)}"
    return PlannedNetwork(layers, sum(layer.flops for layer in traced))
