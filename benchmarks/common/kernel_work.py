"""What every kernel of a training step must read, write and multiply, by level of fusion.

Counted is what a kernel must read and write once even with a perfect cache inside it; so halos,
layout changes, workspaces and split reductions are left out, as are the views and the loss (0.1 %
of the bytes). The levels are those of section 5 of ``reference/performance.md``; the layers come
from running the network (``layer_shapes.py``).

Shapes: values are counted for one view; bytes of weights are divided by the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastrot.benchmarks.common.layer_shapes import VIEWS, Layer, consumers

# A float32 weight and its momentum, each read and written (16), and the gradient read (4); under
# autocast the weight is read and its half copy written before (6), the half gradient read and
# written as float32 behind (6). Bytes a parameter and step.
_UPDATE = 16 + 4 + 6 + 6


@dataclass(frozen=True)
class Level:
    """How much is fused.

    Attributes:
        title: in words.
        fused: ReLU, and the residual, are part of a batch norm.
        forward_reads: how often a batch norm reads x: for the statistics and to normalise (2), or
            once (kept on the chip, or the convolution has summed its own output).
        backward_reads: how often its gradient reads x and dy: for the sums and for dx (2).
        prologue: a batch norm and ReLU between two convolutions is no pass: the second one
            normalises what it reads, its gradient sums what batch norm's needs (cuDNN's Hopper
            patterns); a shortcut's batch norm is part of the block's end.
        perfect: no passes at all: block ends, and the gradients of batch norm too, are made by
            the convolutions around them.
        joint: both gradients of a convolution come from one kernel that reads dy once.
    """

    title: str
    fused: bool = True
    forward_reads: int = 2
    backward_reads: int = 2
    prologue: bool = False
    perfect: bool = False
    joint: bool = False


LEVELS: Mapping[str, Level] = {
    "a0": Level("unfused", fused=False),
    "a1": Level("unfused, batch norm reads once", fused=False, forward_reads=1, backward_reads=1),
    "a2": Level("BN (+ add) + ReLU fused"),
    "a3": Level("a2, statistics summed by the convolution", forward_reads=1),
    "c": Level("cuDNN's Hopper set", forward_reads=1, prologue=True),
    "b": Level("perfect fusion", perfect=True),
    "b2": Level("b, both gradients in one kernel", perfect=True, joint=True),
}
CONVS = "convs"  # the kernels of convolutions alone


@dataclass(frozen=True)
class Work:
    """What one kernel does for one view.

    Attributes:
        layer: whose.
        stage: of the layer.
        kind: of the layer, or ``add`` (of gradients), or ``update``.
        phase: ``forward``, ``backward`` or ``update``.
        nbytes: read and written.
        flops: multiplications and additions, of convolutions and linear layers only.
    """

    layer: str
    stage: str
    kind: str
    phase: str
    nbytes: float
    flops: float = 0.0

    def seconds(self, peak: float, bandwidth: float) -> float:
        """The larger of the two times."""
        return max(self.nbytes / bandwidth, self.flops / peak)


def kernels(layers: list[Layer], level: str, *, batch: int, value_bytes: int = 2) -> list[Work]:
    """All kernels of a training step of a level."""
    if level == CONVS:
        step = _Passes(layers, LEVELS["a0"], batch, value_bytes)
        return [work for work in step.works() if work.kind == "conv"]
    kind = _Perfect if LEVELS[level].perfect else _Passes
    return kind(layers, LEVELS[level], batch, value_bytes).works()


class _Passes:
    """Levels whose batch norms, additions and pools are passes of their own."""

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
        """One kernel: values that it reads and writes, and bytes that are no values."""
        nbytes = values * self.value_bytes + more
        given = {"kind": layer.kind, **work}
        self._works.append(Work(layer.name, layer.stage, phase=phase, nbytes=nbytes, **given))

    def _multiply(self, position: int, layer: Layer) -> None:
        weights = layer.weights / self.batch
        x, y, flops = layer.touched, layer.size_out, layer.flops
        self.add(layer, "forward", x + weights + y, flops=flops)
        if VIEWS not in layer.inputs:  # dy and weights to dx, all of which is written
            extra = self._epilogue(position, layer)
            self.add(layer, "backward", y + weights + layer.size_in + extra, flops=flops)
        self.add(layer, "backward", x + y + weights, flops=flops)  # x and dy to dw

    def _epilogue(self, position: int, layer: Layer) -> int:
        """What the gradient of a convolution's input reads for the batch norm before it: x."""
        return layer.size_in if self._prologue(layer.inputs[0]) else 0

    def _prologue(self, position: int) -> bool:
        """Whether a convolution applies this batch norm to what it reads."""
        if not self.level.prologue or position == VIEWS or self.layers[position].kind != "norm":
            return False
        readers = [self.layers[reader].kind for reader in self.readers[position]]
        return readers == ["conv"] and not self.layers[position].residual

    def _shortcut(self, position: int) -> int | None:
        """The batch norm of the shortcut that a block's end applies itself."""
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
            self.add(layer, "backward", 3 * n)  # the masked dy and x to dx; the sums are there
            return
        reads = level.backward_reads
        if not level.fused:
            self.add(layer, "forward", (level.forward_reads + 1) * n)
            self.add(layer, "backward", (2 * reads + 1) * n)
            if layer.residual:
                self.add(layer, "forward", 3 * n, kind="add")
            if layer.relu:
                self.add(layer, "forward", 2 * n, kind="relu")
                self.add(layer, "backward", 3 * n, kind="relu")  # dy and y to dx
            return
        # Without a residual x tells the sign of what ReLU saw; with one, a bit a value does.
        bits = n / 8 if layer.residual and layer.relu else 0
        two = self._shortcut(position) is not None
        added = 1 if layer.residual else 0
        self.add(layer, "forward", (level.forward_reads + added + 1) * n, more=bits)
        # dy and x, twice, to dx and the residual's gradient; two batch norms share their dy.
        self.add(layer, "backward", ((2 + two) * reads + 1 + added) * n, more=reads * bits)

    def _pool(self, position: int, layer: Layer) -> None:
        n = layer.size_in + layer.size_out
        index = layer.size_out if layer.kind == "maxpool" else 0  # a byte says who was largest
        self.add(layer, "forward", n, more=index)
        self.add(layer, "backward", n, more=index)

    def _accumulate(self, position: int, layer: Layer) -> None:
        """Where several layers read one output, their gradients are added: two in, one out."""
        for _ in self.readers[position][1:]:
            self.add(layer, "backward", 3 * layer.size_out, kind="add")


class _Perfect(_Passes):
    """Levels where all work is done by convolutions and pools while they read and write.

    Who reads a batch norm's output reads x instead and normalises it. The first reader of a
    block's end also adds the residual and writes the sum for the others. A convolution's gradients
    read (dz, x) of the batch norm behind it in place of dy; the one of its input reads what the
    batch norm before it needs, to mask and to sum, and the gradients of the other readers.
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
        both = x + dy + weights
        if VIEWS not in layer.inputs:
            values, more = self._behind(position, layer.inputs[0])
            to_input = weights + layer.size_in + values
            if self.level.joint:
                self.add(layer, "backward", both + to_input, more=more, flops=2 * flops)
                return
            self.add(layer, "backward", dy + to_input, more=more, flops=flops)
        self.add(layer, "backward", both, flops=flops)

    def _pool(self, position: int, layer: Layer) -> None:
        n = layer.size_in + layer.size_out
        index = layer.size_out if layer.kind == "maxpool" else 0
        values, more = self._before(position, layer.inputs[0])
        self.add(layer, "forward", n + values, more=index + more)
        values, more = self._behind(position, layer.inputs[0])
        self.add(layer, "backward", n + values, more=index + more)

    def _before(self, position: int, source: int) -> tuple[int, float]:
        """Values and bytes that the first reader of a block's end adds to its own."""
        if source == VIEWS or not self.layers[source].residual:
            return 0, 0.0
        if self.readers[source][0] != position:
            return 0, 0.0
        n = self.layers[source].size_out
        return 2 * n, n / 8  # the residual, the sum, and the bits of ReLU

    def _behind(self, position: int, source: int) -> tuple[int, float]:
        """Values and bytes that the gradient of the input reads in its epilogue."""
        layer, readers = self.layers[source], self.readers[source]
        if readers[0] != position:
            return 0, 0.0
        values = (len(readers) - 1) * layer.size_out  # the other readers' gradients
        if layer.kind != "norm":
            return values, 0.0
        batch_norms = 1 if self._shortcut(source) is None else 2
        bits = layer.size_out / 8 if layer.residual else 0.0
        return values + batch_norms * layer.size_out, bits
