"""Breakdown of one training step's time by stage of the network, phase, and kind of work.

On a GPU the times are those of the kernels; on a CPU an operation's own time counts. The stage of
forward operations is known from ranges that hooks put around the network's children; that of
backward operations, from the number of the autograd node, which they share with the forward
operation. A step that is compiled or replayed as a CUDA graph has neither: then the names of
kernels give the kind, and the stage is ``step``. Nothing is dropped: unknown parts are ``other``,
and the table adds up to the measured time.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.profiler import record_function

from fastrot.benchmarks.common.layer_shapes import stage_of
from fastrot.benchmarks.train_step.kernel_kinds import KINDS, kind_of
from fastrot.benchmarks.train_step.profile import Operation, StepTrace, keep_trace, record_step

PHASES = {"forward": "fwd", "backward": "bwd", "update": "upd", "step": "step"}  # short names
HEAD = "pool+head"

_MODEL, _STAGE = "fastrot.model", "fastrot.stage:"
_PROFILED = 3
_BACKWARD = "autograd::engine::evaluate_function"
_GRAPH = "GraphLaunch"
_TELLING = ("convolution", "batch norm", "pooling", "matmul", "optimizer", "rotate")


class TimeSlot(NamedTuple):
    """A cell of the table."""

    stage: str
    phase: str
    kind: str


@dataclass(frozen=True)
class TimeTable:
    """The time of one step."""

    seconds: dict[TimeSlot, float]  # seconds by stage, phase and kind, in the order of first use
    device: str  # ``cuda`` or ``cpu``
    by_module: bool  # whether stages are known

    @property
    def total(self) -> float:
        """Return the total time of the step's kernels (on a CPU, its operations), in seconds."""
        return sum(self.seconds.values())

    @property
    def attributed(self) -> float:
        """Return the fraction of the time whose stage (or kind, without stages) is known."""
        column = "stage" if self.by_module else "kind"
        return 1 - self.share(**{column: "other"})

    def share(self, **columns: str) -> float:
        """Return the fraction of time of cells with values such as ``kind="convolution"``."""
        if not self.total:
            return 0.0
        chosen = (
            seconds
            for cell, seconds in self.seconds.items()
            if all(getattr(cell, name) == value for name, value in columns.items())
        )
        return sum(chosen) / self.total

    def stages(self) -> list[str]:
        """Return the stages that took any time, in running order, with ``other`` last."""
        names = list(dict.fromkeys(cell.stage for cell in self.seconds))
        order = ["views", "stem", *sorted(n for n in names if n[-1].isdigit()), HEAD, "loss",
                 "optimizer", "step", "other"]  # fmt: skip
        return sorted(names, key=order.index)

    def kinds(self) -> list[str]:
        """Return the kinds that took any time."""
        found = {cell.kind for cell in self.seconds}
        return [kind for kind in KINDS if kind in found]

    def to_json(self) -> list[dict[str, Any]]:
        """Return one object per cell."""
        return [
            {**cell._asdict(), "ms": round(1e3 * seconds, 5)}
            for cell, seconds in self.seconds.items()
        ]


def time_table(
    step: Callable[[], None],
    *,
    device: torch.device,
    model: nn.Module | None,
    trace: Path | None = None,
) -> TimeTable:
    """Profile a few steps, and return the table of the fastest one, which was disturbed least.

    Args:
        step: function that trains one step; it has run before.
        device: device that the step runs on.
        model: model that the step calls, whose ``backbone`` has the stages; None: it is compiled
            or in a CUDA graph, so only kinds are known.
        trace: file for the Chrome trace (Perfetto shows it), compressed if it ends with ``.gz``.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = [Path(folder) / f"{number}.json" for number in range(_PROFILED)]
        with nullcontext() if model is None else _ranges(model):
            seen = [record_step(step, device, path) for path in written]
        tables = [tabulate(each, by_module=model is not None) for each in seen]
        best = min(range(_PROFILED), key=lambda number: tables[number].total)
        if trace is not None:
            keep_trace(written[best], trace)
    return tables[best]


def tabulate(seen: StepTrace, *, by_module: bool) -> TimeTable:
    """Add up the times of a profiled step."""
    where = _Attribution(seen, by_module=by_module)
    seconds: dict[TimeSlot, float] = defaultdict(float)
    if seen.device:
        for work in seen.device:
            seconds[where.cell(work.launch, work.name)] += work.micros / 1e6
        return TimeTable(dict(seconds), "cuda", by_module)
    for operation in seen.operations:
        if operation is seen.step:
            for start, end in _gaps(seen):
                stage, phase = where.at(start)
                seconds[TimeSlot(stage, phase, "rotate" if stage == "views" else "other")] += (
                    end - start
                ) / 1e6
        elif operation.thread == seen.step.thread and seen.step in operation.chain():
            seconds[where.cell(operation, None)] += operation.own / 1e6
    return TimeTable(dict(seconds), "cpu", by_module)


def _gaps(seen: StepTrace) -> Iterator[tuple[float, float]]:
    """Yield the intervals of the step outside any operation, in which unnamed kernels run."""
    now = seen.step.start
    for operation in seen.operations:
        if operation.parent is seen.step:
            if operation.start > now:
                yield now, operation.start
            now = max(now, operation.end)
    if seen.step.end > now:
        yield now, seen.step.end


@contextmanager
def _ranges(model: nn.Module) -> Iterator[None]:
    """Put ranges around the model and its backbone's children for the duration of the context."""
    open_ones: list[record_function] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            open_ones.append(record_function(name))
            open_ones[-1].__enter__()

        return hook

    def leave(*_: Any) -> None:
        open_ones.pop().__exit__(None, None, None)

    assert isinstance(model.backbone, nn.Module)
    ranges = {_MODEL: model, f"{_STAGE}{HEAD}": model.head}
    children = [(name, child) for name, child in model.backbone.named_children()]
    pairs = [*ranges.items()]
    pairs += [(_STAGE + _stage(name), child) for name, child in children]
    handles = []
    for name, module in pairs:
        assert isinstance(module, nn.Module)
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stage(child: str) -> str:
    return HEAD if child == "avgpool" else stage_of(child)


class _Attribution:
    """Finds the cell that an operation belongs to."""

    def __init__(self, seen: StepTrace, *, by_module: bool) -> None:
        self._by_module = by_module
        self._main = seen.step.thread
        self._passes(seen)
        self._stage_of_node: tuple[list[int], list[str]] = ([], [])
        self._accumulated: dict[int, str] = {}  # by id of an operation without a node's number
        if by_module:
            self._nodes(seen)

    def _passes(self, seen: StepTrace) -> None:
        """Find when each part begins: views, model, loss and backward pass, repeated; update."""
        backward = [each for each in seen.operations if each.name.startswith(_BACKWARD)]
        models = [each for each in seen.operations if each.name == _MODEL]
        marks: list[tuple[float, str, str]] = [(seen.step.start, "views", "forward")]
        if not models:
            marks = [(seen.step.start, "step", "forward")]
        for position, model in enumerate(models):
            last = position == len(models) - 1
            until = seen.step.end if last else models[position + 1].start
            marks.append((model.start, HEAD, "forward"))
            marks.append((model.end, "loss", "forward"))
            own = [each for each in backward if model.end <= each.start < until]
            if own:
                marks.append((own[0].start, "other", "backward"))
                after = ("optimizer", "update") if last else ("views", "forward")
                marks.append((max(each.end for each in own), *after))
        if not models and backward:
            marks.append((backward[0].start, "step", "backward"))
            marks.append((max(each.end for each in backward), "optimizer", "update"))
        self._starts = [start for start, _, _ in marks]
        self._marks = [(stage, phase) for _, stage, phase in marks]

    def at(self, time: float) -> tuple[str, str]:
        """Return stage and phase at a time, from the order of the main thread."""
        return self._marks[max(bisect_right(self._starts, time) - 1, 0)]

    def _nodes(self, seen: StepTrace) -> None:
        """Find the stage that created each autograd node; numbers grow with time.

        Before a node is created, several operations have its number; the last one creates it.
        """
        made: dict[int, str] = {}
        for operation in seen.operations:
            if operation.thread == self._main and operation.sequence is not None:
                stage, phase = self._forward(operation)
                if phase == "forward" and operation.sequence >= 0:
                    made[operation.sequence] = stage
        numbers = sorted(made)
        self._stage_of_node = (numbers, [made[number] for number in numbers])
        # A leaf's gradient has no number; it is added right after the node that computed it.
        latest: dict[Any, str] = {}
        for operation in seen.operations:
            if operation.name.startswith(_BACKWARD):
                if operation.sequence is not None and operation.sequence >= 0:
                    latest[operation.thread] = self._of_node(operation.sequence)
                self._accumulated[id(operation)] = latest.get(operation.thread, "other")

    def _of_node(self, sequence: int) -> str:
        numbers, stages = self._stage_of_node
        position = bisect_right(numbers, sequence) - 1
        return stages[position] if position >= 0 else "other"

    def _forward(self, operation: Operation) -> tuple[str, str]:
        for outer in operation.chain():
            if outer.name.startswith(_STAGE):
                return outer.name.removeprefix(_STAGE), "forward"
        return self.at(operation.start)

    def cell(self, operation: Operation | None, kernel: str | None) -> TimeSlot:
        """Return the cell of an operation on the host, or of the kernel that it started."""
        kind = _kind(operation, kernel)
        if operation is None or _GRAPH in operation.name:
            return TimeSlot("other" if self._by_module else "step", "step", kind)
        for outer in operation.chain():
            if outer.name.startswith(_BACKWARD):
                stage = self._accumulated.get(id(outer), "step")
                return TimeSlot(stage, "backward", kind)
        stage, phase = self._forward(operation)
        return TimeSlot(stage, phase, "rotate" if stage == "views" and kind == "other" else kind)


def _kind(operation: Operation | None, kernel: str | None) -> str:
    """Return the kind of the operation around it, except for copies and if that is unknown.

    A backward node counts only through the operations it runs: gradients that are added directly in
    its evaluation are not part of its own work.
    """
    chain = operation.chain() if operation is not None else []
    names = [o.name for o in chain if o is operation or not o.name.startswith(_BACKWARD)]
    around = [kind for name in names if (kind := kind_of(name)) is not None]
    own = kind_of(kernel) if kernel is not None else None
    nearest = own or (around[0] if around else "other")
    if nearest == "copy/cast":
        return nearest
    return next((kind for kind in around if kind in _TELLING), nearest)
