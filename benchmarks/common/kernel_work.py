"""Memory traffic and arithmetic of every kernel of a training step, by level of fusion.

The traffic is what a kernel must read and write once even with a perfect cache. So halos, layout
changes, workspaces and split reductions do not count, nor do the views and the loss (0.1 % of the
bytes). The levels are those of section 5 of ``reference/performance.md``; the layers come from
running the network (``layer_shapes.py``).

Shapes: values are counted per view; bytes of weights are divided by the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastrot.benchmarks.common.layer_shapes import VIEWS, Layer, consumers

# Bytes per parameter and step. A float32 weight and its momentum are each read and written (16),
# and the gradient is read (4). Under autocast the weight is read and its half copy written before
# (6), and the half gradient is read and written as float32 afterwards (6).
_UPDATE = 16 + 4 + 6 + 6


@dataclass(frozen=True)
class Level:
    """A level of fusion."""

    title: str  # display name
    fused: bool = True  # ReLU and the residual addition are part of a batch norm
    forward_reads: int = 2
    """How often a batch norm reads x: for the statistics and to normalise (2), or once (the
    convolution has summed its own output)."""
    prologue: bool = False
    """Batch norm and ReLU between two convolutions are not a separate pass: the second convolution
    normalises what it reads, and its gradient computes the sums for batch norm's (cuDNN's Hopper
    patterns); a shortcut's batch norm is part of the block's end."""
    perfect: bool = False
    """No separate passes at all: the surrounding convolutions also compute block ends and the
    gradients of batch norm."""


LEVELS: Mapping[str, Level] = {
    "a0": Level("unfused", fused=False),
    "a2": Level("BN (+ add) + ReLU fused"),
    "c": Level("cuDNN's Hopper set", forward_reads=1, prologue=True),
    "b": Level("perfect fusion", perfect=True),
}
CONVS = "convs"  # the kernels of convolutions alone


@dataclass(frozen=True)
class Work:
    """Work of one kernel for one view."""

    layer: str  # name of the layer
    stage: str  # stage of the layer
    kind: str  # kind of the layer, or ``add`` (of gradients), or ``update``
    phase: str  # ``forward``, ``backward`` or ``update``
    nbytes: float  # bytes read and written
    flops: float = 0.0  # multiplications and additions, of convolutions and linear layers only

    def seconds(self, peak: float, bandwidth: float) -> float:
        """Return the time for memory traffic or for arithmetic, whichever is longer."""
        return max(self.nbytes / bandwidth, self.flops / peak)


def kernels(layers: list[Layer], level: str, *, batch: int, value_bytes: int = 2) -> list[Work]:
    """Return all kernels of a training step at a level of fusion."""
    if level == CONVS:
        step = _Passes(layers, LEVELS["a0"], batch, value_bytes)
        return [work for work in step.works() if work.kind == "conv"]
    kind = _Perfect if LEVELS[level].perfect else _Passes
    return kind(layers, LEVELS[level], batch, value_bytes).works()


class _Passes:
    """Levels whose batch norms, additions and pools are separate passes."""

    def __init__(self, layers: list[Layer], level: Level, batch: int, value_bytes: int) -> None:
        self.layers, self.level, self.batch, self.value_bytes = layers, level, batch, value_bytes
        self.readers = consumers(layers)
        self._works: list[Work] = []

    def works(self) -> list[Work]:
        self._works = []
        for position, layer in enumerate(self.layers):
            if layer.kind in ("conv", "fc"):
                self._multiply(position, layer)
            elif layer.kind == "norm":
                self._norm(position, layer)
            else:
                self._pool(position, layer)
            self._accumulate(position, layer)
        weights = sum(layer.weights for layer in self.layers)
        self._works.append(Work("", "update", "update", "update", weights * _UPDATE / self.batch))
        return self._works

    def add(self, layer: Layer, phase: str, values: float, *, more: float = 0, **work: Any) -> None:
        """Add a kernel: values that it reads and writes, and bytes that are not values."""
        nbytes = values * self.value_bytes + more
        given = {"kind": layer.kind, **work}
        self._works.append(Work(layer.name, layer.stage, phase=phase, nbytes=nbytes, **given))

    def _multiply(self, position: int, layer: Layer) -> None:
        weights = layer.weights / self.batch
        x, y, flops = layer.touched, layer.size_out, layer.flops
        self.add(layer, "forward", x + weights + y, flops=flops)
        if VIEWS not in layer.inputs:  # dy and weights give dx, all of which is written
            extra = self._epilogue(position, layer)
            self.add(layer, "backward", y + weights + layer.size_in + extra, flops=flops)
        self.add(layer, "backward", x + y + weights, flops=flops)  # x and dy give dw

    def _epilogue(self, position: int, layer: Layer) -> int:
        """Return how many values of x a convolution's input gradient reads for the batch norm."""
        return layer.size_in if self._prologue(layer.inputs[0]) else 0

    def _prologue(self, position: int) -> bool:
        """Return whether a convolution applies this batch norm to what it reads."""
        if not self.level.prologue or position == VIEWS or self.layers[position].kind != "norm":
            return False
        readers = [self.layers[reader].kind for reader in self.readers[position]]
        return readers == ["conv"] and not self.layers[position].residual

    def _shortcut(self, position: int) -> int | None:
        """Return the batch norm of the shortcut, if the block's end applies it itself."""
        norm = self.layers[position]
        if not (self.level.prologue or self.level.perfect) or not norm.residual:
            return None
        other = norm.inputs[1]
        plain = other != VIEWS and self.layers[other].kind == "norm" and not self.layers[other].relu
        return other if plain else None

    def _norm(self, position: int, layer: Layer) -> None:
        n, level = layer.size_out, self.level
        if any(self._shortcut(reader) == position for reader in self.readers[position]
               if self.layers[reader].residual):  # fmt: skip
            return  # part of the block's end
        if self._prologue(position):
            self.add(layer, "backward", 3 * n)  # masked dy and x give dx; the sums are known
            return
        if not level.fused:
            self.add(layer, "forward", 3 * n)
            self.add(layer, "backward", 5 * n)
            if layer.residual:
                self.add(layer, "forward", 3 * n, kind="add")
            if layer.relu:
                self.add(layer, "forward", 2 * n, kind="relu")
                self.add(layer, "backward", 3 * n, kind="relu")  # dy and y give dx
            return
        # Without a residual, x gives the sign of ReLU's input; with one, a bit per value does.
        bits = n / 8 if layer.residual and layer.relu else 0
        two = self._shortcut(position) is not None
        added = 1 if layer.residual else 0
        self.add(layer, "forward", (level.forward_reads + added + 1) * n, more=bits)
        # dy and x, twice, give dx and the residual's gradient; two batch norms share their dy.
        self.add(layer, "backward", (2 * (2 + two) + 1 + added) * n, more=2 * bits)

    def _pool(self, position: int, layer: Layer) -> None:
        n = layer.size_in + layer.size_out
        index = layer.size_out if layer.kind == "maxpool" else 0  # a byte per output: its argmax
        self.add(layer, "forward", n, more=index)
        self.add(layer, "backward", n, more=index)

    def _accumulate(self, position: int, layer: Layer) -> None:
        """Add gradients where several layers read one output: each sum reads two, writes one."""
        for _ in self.readers[position][1:]:
            self.add(layer, "backward", 3 * layer.size_out, kind="add")


class _Perfect(_Passes):
    """Levels where convolutions and pools do all work while they read and write.

    A layer that reads a batch norm's output reads x instead and normalises it. The first reader of
    a block's end also adds the residual and writes the sum for the others. A convolution's
    gradients read (dz, x) of the batch norm after it instead of dy; the gradient of its input also
    reads what the batch norm before it needs, to mask and to sum, and the other readers' gradients.
    """

    def _norm(self, position: int, layer: Layer) -> None:
        return

    def _accumulate(self, position: int, layer: Layer) -> None:
        return

    def _multiply(self, position: int, layer: Layer) -> None:
        weights = layer.weights / self.batch
        x, y, flops = layer.touched, layer.size_out, layer.flops
        values, more = self._before(position, layer.inputs[0])
        self.add(layer, "forward", x + weights + y + values, more=more, flops=flops)
        behind = [self.layers[reader].kind for reader in self.readers[position]]
        dy = 2 * y if behind == ["norm"] else y
        if VIEWS not in layer.inputs:
            values, more = self._behind(position, layer.inputs[0])
            to_input = weights + layer.size_in + values
            self.add(layer, "backward", dy + to_input, more=more, flops=flops)
        self.add(layer, "backward", x + dy + weights, flops=flops)

    def _pool(self, position: int, layer: Layer) -> None:
        n = layer.size_in + layer.size_out
        index = layer.size_out if layer.kind == "maxpool" else 0
        values, more = self._before(position, layer.inputs[0])
        self.add(layer, "forward", n + values, more=index + more)
        values, more = self._behind(position, layer.inputs[0])
        self.add(layer, "backward", n + values, more=index + more)

    def _before(self, position: int, source: int) -> tuple[int, float]:
        """Return the extra values and bytes for the first reader of a block's end."""
        if source == VIEWS or not self.layers[source].residual:
            return 0, 0.0
        if self.readers[source][0] != position:
            return 0, 0.0
        n = self.layers[source].size_out
        return 2 * n, n / 8  # the residual, the sum, and the bits of ReLU

    def _behind(self, position: int, source: int) -> tuple[int, float]:
        """Return the values and bytes that the gradient of the input reads in its epilogue."""
        layer, readers = self.layers[source], self.readers[source]
        if readers[0] != position:
            return 0, 0.0
        values = (len(readers) - 1) * layer.size_out  # the other readers' gradients
        if layer.kind != "norm":
            return values, 0.0
        batch_norms = 1 if self._shortcut(source) is None else 2
        bits = layer.size_out / 8 if layer.residual else 0.0
        return values + batch_norms * layer.size_out, bits
