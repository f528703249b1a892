"""Cases of ``fastrot bench kernels``: operations, their shapes in ResNet-50, and their bytes.

Bytes follow from the reference implementation and are the same for every implementation: each
tensor counts as often as the reference must read or write it. Vectors with one value per channel do
not count.

Shapes: N images, V = 4 views of each, C channels, S side, E = N V C S S elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fastrot.benchmarks.kernels.optimizer import parameter_shapes, size
from fastrot.errors import UsageError

VIEWS = 4
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}
_INNER, _OUTER = (64, 128, 256, 512), (256, 512, 1024, 2048)  # widths of stages 1 to 4

Kind = Literal["rotate", "forward", "backward", "frozen", "sgd"]


@dataclass(frozen=True)
class Op:
    """One operation to measure."""

    kind: Kind
    """Rotate: images to views; forward, backward: of batch normalisation in training; frozen: batch
    normalisation with the running statistics; sgd: the optimizer's step."""
    residual: bool = False  # whether a batch normalisation adds a residual before ReLU
    channels: int = 0  # channels of the views of rotate


OPS = {
    "rotate-3": Op("rotate", channels=3),
    "rotate-4": Op("rotate", channels=4),
    "bn-relu-forward": Op("forward"),
    "bn-relu-backward": Op("backward"),
    "bn-add-relu-forward": Op("forward", residual=True),
    "bn-add-relu-backward": Op("backward", residual=True),
    "bn-relu-frozen": Op("frozen"),
    "bn-add-relu-frozen": Op("frozen", residual=True),
    "sgd": Op("sgd"),
}
"""Operations by name; every batch normalisation ends with ReLU; sgd is torch's, for comparison."""


@dataclass(frozen=True)
class Case:
    """An operation at a shape."""

    name: str  # key of ``OPS``
    shape: tuple[int, ...]
    """Shape of the images, (N, S, S, 3), of x, (N V, C, S, S), or of all parameters, (P,)."""
    dtype: torch.dtype  # dtype of the views, of x, or of the parameters

    def __str__(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.shape))}"

    @property
    def op(self) -> Op:
        """Return the operation."""
        return OPS[self.name]

    @property
    def bytes(self) -> int:
        """Return how many bytes must be moved.

        Rotate: images once, views once. Forward: x twice, once for the statistics; y; and one bit
        per element for the backward pass. Backward: dy, x and the bits twice; dx. Frozen: x and y.
        A residual, and its gradient, is one more tensor. SGD: the gradient is read; parameter and
        momentum are read and written.
        """
        elements, size = math.prod(self.shape), self.dtype.itemsize
        if self.op.kind == "sgd":
            return 5 * elements * size
        if self.op.kind == "rotate":
            return elements + VIEWS * elements // 3 * self.op.channels * size
        tensors = {"forward": 3, "backward": 5, "frozen": 2}[self.op.kind] + self.op.residual
        bits = {"forward": 1, "backward": 2, "frozen": 0}[self.op.kind]
        return tensors * elements * size + bits * elements // 8


def cases(ops: Sequence[str], *, resolution: int, batch: int, dtype: str) -> list[Case]:
    """Return every operation at the shapes that it has in ResNet-50.

    Args:
        ops: keys of ``OPS``.
        resolution: S of the images.
        batch: N, images before rotation; a layer gets 4 N views.
        dtype: key of ``DTYPES``.

    Raises:
        UsageError: a name is unknown, or a number is too small.
    """
    if unknown := set(ops) - set(OPS):
        raise UsageError(f"unknown ops {sorted(unknown)}; choose {', '.join(OPS)}")
    if dtype not in DTYPES:
        raise UsageError(f"unknown --dtype={dtype}; choose {', '.join(DTYPES)}")
    for name, number, least in (("resolution", resolution, 8), ("batch", batch, 1)):
        if number < least:
            raise UsageError(f"--{name}={number} must be at least {least}")
    return [
        Case(name, shape, torch.float32 if OPS[name].kind == "sgd" else DTYPES[dtype])
        for name in ops
        for shape in _shapes(OPS[name], resolution, batch)
    ]


def _shapes(op: Op, resolution: int, batch: int) -> Sequence[tuple[int, ...]]:
    if op.kind == "sgd":
        return [(size(parameter_shapes()),)]
    if op.kind == "rotate":
        return [(batch, resolution, resolution, 3)]
    sides = [resolution]
    for _ in range(5):  # the stem, the pooling and stages 2 to 4 halve the sides, rounding up
        sides.append(-(-sides[-1] // 2))
    layers = list(zip(_OUTER if op.residual else _INNER, sides[2:], strict=True))
    if not op.residual:
        layers.insert(0, (64, sides[1]))  # the stem
    return [(VIEWS * batch, width, side, side) for width, side in layers]
