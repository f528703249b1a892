"""The layers of a network with their shapes, found by running it without data.

The network runs once on torch's ``meta`` device, which knows shapes but computes nothing, and every
operation is recorded when torch dispatches it. So the list, and which layer reads which, follows
from the network itself, whatever it is made of.

Shapes: those of one view, (channels, height, width), without the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

Kind = Literal["conv", "norm", "relu", "add", "maxpool", "avgpool", "fc"]

VIEWS = -1  # in ``Layer.inputs``: the input of the network

_KINDS: Mapping[str, Kind] = {
    "convolution": "conv",
    "native_batch_norm": "norm",
    "_native_batch_norm_legit": "norm",
    "_native_batch_norm_legit_functional": "norm",
    "cudnn_batch_norm": "norm",
    "relu": "relu",
    "relu_": "relu",
    "add": "add",
    "add_": "add",
    "max_pool2d_with_indices": "maxpool",
    "avg_pool2d": "avgpool",
    "_adaptive_avg_pool2d": "avgpool",
    "mean": "avgpool",
    "addmm": "fc",
}
_SAME = ("view", "_unsafe_view", "t", "detach", "alias", "reshape")


@dataclass(frozen=True)
class Layer:
    """One layer of a network, applied to one view.

    Attributes:
        name: name of the module, e.g. ``layer1.0.conv1``.
        stage: first part of the name; that of ``conv1`` and ``bn1`` is ``stem``.
        kind: operation; ``norm`` is batch normalisation with the residual addition and the ReLU
            that follow it, if any.
        inputs: positions, in the list, of the layers that it reads, ``VIEWS`` or more; the second
            input of a norm is the residual.
        shape_in: shape of its first input.
        shape_out: shape of its output.
        kernel: side of the window of a convolution or pool.
        stride: stride of the window.
        weights: number of parameters.
        multiplications: number in the forward pass of a convolution or linear layer.
        relu: whether a norm ends with ReLU.
    """

    name: str
    stage: str
    kind: Kind
    inputs: tuple[int, ...]
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    kernel: int = 1
    stride: int = 1
    weights: int = 0
    multiplications: int = 0
    relu: bool = False

    @property
    def size_in(self) -> int:
        """Return the number of values of its first input."""
        return math.prod(self.shape_in)

    @property
    def size_out(self) -> int:
        """Return the number of values of its output."""
        return math.prod(self.shape_out)

    @property
    def touched(self) -> int:
        """Return how many values of its first input it reads; 1x1 with stride 2 skips most."""
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
    views = torch.empty((2, *shape), device="meta")  # batch norm requires more than one value
    recorder = _Recorder(views)
    with torch.no_grad(), _named(model, recorder), recorder:
        model.train()(views)
    return _folded(recorder.layers)


def consumers(layers: list[Layer]) -> dict[int, list[int]]:
    """Return, for each layer and ``VIEWS``, the layers that read its output, in running order."""
    found: dict[int, list[int]] = {position: [] for position in range(VIEWS, len(layers))}
    for position, layer in enumerate(layers):
        for source in layer.inputs:
            found[source].append(position)
    return found


class _Recorder(TorchDispatchMode):
    """Records each operation as a layer, and knows which layer made a tensor."""

    def __init__(self, views: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[Layer] = []
        self.module = ""
        self._made = {id(views): VIEWS}
        self._alive = [views]  # an id is valid only as long as its object lives

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        out: Any = func(*args, **(kwargs or {}))
        first: Any = out[0] if isinstance(out, (tuple, list)) else out
        name = func.overloadpacket.__name__
        sources = [
            self._made[id(arg)]
            for arg in args
            if isinstance(arg, torch.Tensor) and id(arg) in self._made
        ]
        if sources:
            self._alive.append(first)
            if name in _SAME:
                self._made[id(first)] = sources[0]
            elif name in _KINDS:
                self._made[id(first)] = len(self.layers)
                self.layers.append(self._layer(_KINDS[name], sources, args, first))
            else:
                raise ValueError(f"{self.module}: no accounting for the operation {name}")
        return out  # type: ignore[no-any-return]

    def _layer(self, kind: Kind, sources: list[int], args: Any, out: torch.Tensor) -> Layer:
        read = args[1] if kind == "fc" else args[0]
        layer = Layer(
            name=self.module,
            stage=stage_of(self.module),
            kind=kind,
            inputs=tuple(sources),
            shape_in=tuple(read.shape[1:]),
            shape_out=tuple(out.shape[1:]),
        )
        if kind == "conv":
            weight = args[1]  # (channels out, channels in / groups, side, side)
            multiplications = weight.numel() * math.prod(out.shape[2:])
            return replace(layer, kernel=weight.shape[-1], stride=args[3][0],
                           weights=weight.numel(), multiplications=multiplications)  # fmt: skip
        if kind == "fc":
            count = args[2].numel()
            return replace(layer, weights=count + args[0].numel(), multiplications=count)
        if kind == "norm":
            return replace(layer, weights=2 * read.shape[1])
        if kind == "maxpool":
            return replace(layer, kernel=args[1][0], stride=args[2][0])
        return layer


@contextmanager
def _named(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder which module runs."""
    stack: list[str] = []

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            stack.append(name)
            recorder.module = name

        return hook

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        stack.pop()
        recorder.module = stack[-1] if stack else ""

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name.removeprefix("backbone."))))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def stage_of(module: str) -> str:
    """Return the stage in a module's name: its first part, or ``stem``."""
    first = module.partition(".")[0]
    return "stem" if first in ("conv1", "bn1", "maxpool", "relu") else first


def _folded(layers: list[Layer]) -> list[Layer]:
    """Return the layers without ``add`` and ``relu``, which become part of the norm before them.

    Raises:
        ValueError: one of them does not follow a norm.
    """
    folded: list[Layer] = []
    now: dict[int, int] = {VIEWS: VIEWS}  # old positions to new ones
    for position, layer in enumerate(layers):
        inputs = tuple(now[source] for source in layer.inputs)
        if layer.kind not in ("add", "relu"):
            now[position] = len(folded)
            folded.append(replace(layer, inputs=inputs))
            continue
        # Both summands may be norms; the residual is added to that of the main branch.
        norm = min(inputs) if layer.kind == "relu" else _main_branch(folded, inputs)
        if norm == VIEWS or folded[norm].kind != "norm":
            raise ValueError(f"{layer.name}: no accounting for {layer.kind} without a norm before")
        if layer.kind == "relu":
            folded[norm] = replace(folded[norm], relu=True)
        else:
            (other,) = (source for source in inputs if source != norm)
            folded[norm] = replace(folded[norm], inputs=(folded[norm].inputs[0], other))
        now[position] = norm
    return folded


def _main_branch(folded: list[Layer], inputs: tuple[int, ...]) -> int:
    """Return the summand that is a norm without ReLU and does not belong to a shortcut.

    A shortcut without a convolution is the output of the block before, which ends with ReLU.
    """
    norms = [
        source
        for source in inputs
        if source != VIEWS and folded[source].kind == "norm" and not folded[source].relu
    ]
    return min(norms, key=lambda source: "downsample" in folded[source].name, default=VIEWS)
