"""The layers of a network with their shapes, found by tracing it without data.

``torch.fx`` follows the network once, and its graph runs on torch's ``meta`` device, which knows
shapes but computes nothing. So the list, and which layer reads which, follows from the network
itself.

Shapes: those of one view, (channels, height, width), without the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from fastrot.models.layers import BatchNorm

Kind = Literal["conv", "norm", "maxpool", "avgpool", "fc"]

VIEWS = -1  # in ``Layer.inputs``: the input of the network

_KINDS: Mapping[type[nn.Module], Kind] = {
    nn.Conv2d: "conv",
    BatchNorm: "norm",
    nn.MaxPool2d: "maxpool",
    nn.AvgPool2d: "avgpool",
    nn.AdaptiveAvgPool2d: "avgpool",
    nn.Linear: "fc",
}
_SAME = ("flatten", nn.Identity)


@dataclass(frozen=True)
class Layer:
    """One layer of a network, applied to one view."""

    name: str  # name of the module, e.g. ``layer1.0.conv1``
    stage: str  # first part of the name; that of ``conv1`` and ``bn1`` is ``stem``
    kind: Kind
    """Operation; ``norm`` is batch normalisation with the residual addition and the ReLU that
    follow it, if any."""
    inputs: tuple[int, ...]
    """Positions, in the list, of the layers that it reads, ``VIEWS`` or more; the second input of a
    norm is the residual."""
    shape_in: tuple[int, ...]  # shape of its first input
    shape_out: tuple[int, ...]  # shape of its output
    kernel: int = 1  # side of the window of a convolution or pool
    stride: int = 1  # stride of the window
    weights: int = 0  # number of parameters
    multiplications: int = 0  # number in the forward pass of a convolution or linear layer
    relu: bool = False  # whether a norm ends with ReLU

    @property
    def size_in(self) -> int:
        """Return the number of values in the layer's first input."""
        return math.prod(self.shape_in)

    @property
    def size_out(self) -> int:
        """Return the number of values in the layer's output."""
        return math.prod(self.shape_out)

    @property
    def touched(self) -> int:
        """Return how many values of the first input are read; 1x1 with stride 2 skips most."""
        if self.kernel >= self.stride:
            return self.size_in
        return self.shape_in[0] * math.prod(self.shape_out[1:])

    @property
    def flops(self) -> int:
        """Return FLOPs of the forward pass; gradients of input and weights each take as many."""
        return 2 * self.multiplications

    @property
    def residual(self) -> bool:
        """Return whether the layer is a norm that adds a residual."""
        return self.kind == "norm" and len(self.inputs) == 2


def trace(model: nn.Module, shape: tuple[int, int, int]) -> list[Layer]:
    """Return the layers of a network in the order in which they run.

    Args:
        model: network on the meta device (build it under ``torch.device("meta")``).
        shape: shape of one view, (channels, height, width).

    Raises:
        ValueError: the network has an operation that this accounting does not know.
    """
    graph = _Tracer().trace(model)
    views = torch.empty((2, *shape), device="meta")  # batch norm requires more than one value
    with torch.no_grad():
        ShapeProp(fx.GraphModule(model.train(), graph)).propagate(views)
    layers: list[Layer] = []
    made: dict[fx.Node, int] = {}  # positions of the layers whose outputs the nodes are
    for node in graph.nodes:
        if node.op == "placeholder":
            made[node] = VIEWS
        elif node.op != "output":
            module = model.get_submodule(node.target) if node.op == "call_module" else None
            if node.target in _SAME or type(module) in _SAME:
                made[node] = made[node.args[0]]
                continue
            layers.append(_layer(node, module, tuple(made[each] for each in node.all_input_nodes)))
            made[node] = len(layers) - 1
    return layers


class _Tracer(fx.Tracer):
    """Follows a network down to the modules that are layers."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, tuple(_KINDS)) or super().is_leaf_module(module, name)


def _layer(node: fx.Node, module: Any, inputs: tuple[int, ...]) -> Layer:
    kind = next((kind for each, kind in _KINDS.items() if isinstance(module, each)), None)
    if kind is None:
        where, what = (node.name, node.target) if module is None else (node.target, type(module))
        raise ValueError(f"{where}: no accounting for the operation {what}")
    name = str(node.target).removeprefix("backbone.")
    read, made = (tuple(each.meta["tensor_meta"].shape[1:]) for each in (node.args[0], node))  # type: ignore[union-attr]
    layer = Layer(name, stage_of(name), kind, inputs, read, made)
    if kind == "norm":
        return replace(layer, weights=2 * module.num_features, relu=module.relu)
    if kind == "maxpool":
        return replace(layer, kernel=module.kernel_size, stride=module.stride)
    if kind == "avgpool":
        return layer
    layer = replace(
        layer,
        weights=sum(each.numel() for each in module.parameters()),
        multiplications=module.weight.numel() * math.prod(made[1:]),
    )
    if kind == "fc":
        return layer
    return replace(layer, kernel=module.kernel_size[0], stride=module.stride[0])


def consumers(layers: list[Layer]) -> dict[int, list[int]]:
    """Return, for each layer and ``VIEWS``, the layers that read its output, in running order."""
    found: dict[int, list[int]] = {position: [] for position in range(VIEWS, len(layers))}
    for position, layer in enumerate(layers):
        for source in layer.inputs:
            found[source].append(position)
    return found


def stage_of(module: str) -> str:
    """Return the stage in a module's name: its first part, or ``stem``."""
    first = module.partition(".")[0]
    return "stem" if first in ("conv1", "bn1", "maxpool", "relu") else first
