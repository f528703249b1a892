"""One optimizer step: forward, backward, finite check, update. The host never waits for it.

Of the task it knows how the inputs of a pass are prepared, and what comes out: ``Task``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from fastrot.distributed.world import World
from fastrot.training.cuda_graph import StepGraph

# The attribute through which torch's GradScaler also tells a fused optimizer to skip a step.
_SKIP = "found_inf"


class PassInputs(Protocol):
    """The inputs of one forward pass, on the device."""

    @property
    def items(self) -> int:
        """Return the number of items that losses are means over, known on the host."""
        ...


class PassResult(Protocol):
    """The result of one forward pass; everything stays on the device."""

    @property
    def loss(self) -> torch.Tensor:
        """Return what is minimised: the mean over the items of the pass, a scalar."""
        ...

    def sums(self) -> Mapping[str, torch.Tensor]:
        """Return what a run reports, as sums over the items: scalars by name, always the same."""
        ...


class Task(Protocol):
    """What is learnt."""

    def inputs(self, batch: Any) -> Any:
        """Return the ``PassInputs`` of a batch; runs on the host."""
        ...

    def predict(self, model: nn.Module, inputs: Any) -> PassResult:
        """Run the model on the inputs of a pass; runs on the device alone."""
        ...


@dataclass(frozen=True)
class Totals:
    """What happened since the last reading, over all ranks.

    Attributes:
        means: mean over all items of each sum that the task reports, by name; empty before the
            first step.
        gradient_norm: gradient norm of the last step, after averaging over the ranks.
        finite_steps: number of steps with finite loss and gradients, since the start.
    """

    means: Mapping[str, float]
    gradient_norm: float
    finite_steps: int


class TrainStep:
    """Trains on a batch; results accumulate on the device, and ``read`` is the only host sync.

    A step whose loss or gradient is NaN or infinite changes no parameter and no momentum, and
    neither does any later one: the flag is sticky, stays on the device, and is given to the fused
    optimizer as its "skip" input. So when the host reads the flag (``finite_steps`` fell
    behind), parameters and optimizer are still those of the last good step. With a gradient
    scaler (fp16), infinite gradients are not an error but part of its search for a scale; a
    non-finite loss is an error.

    Args:
        model: the model to train, wrapped for distribution or not.
        optimizer: a fused optimizer (it must accept ``found_inf``).
        task: prepares the inputs of a pass and runs the model on them.
        device: device of the model.
        scaler: gradient scaler for fp16; None otherwise.
        world: the ranks that must agree on the flag.
        graph: record the step as a CUDA graph and replay it. The learning rate must be a tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.SGD,
        task: Task,
        *,
        device: torch.device,
        scaler: torch.amp.GradScaler | None = None,
        world: World | None = None,
        graph: bool = False,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.device = device
        self._task = task
        self._world = world or World()
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        # Written in place, never replaced: a graph refers to them by address.
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._skip = torch.zeros((), device=device)
        self._finite_steps = torch.zeros((), dtype=torch.int64, device=device)
        self._sums: dict[str, torch.Tensor] = {}
        self._norm = torch.zeros((), device=device)
        self._items = 0
        self._run = (
            StepGraph(self._on_device, device, ranks=self._world.size) if graph else self._on_device
        )

    def __call__(self, batches: Sequence[Any]) -> None:
        """Train on the micro-batches of one step, accumulating gradients if there are several."""
        inputs = [self._task.inputs(batch) for batch in batches]
        self._items += sum(each.items for each in inputs)
        self._run(inputs)

    def _on_device(self, passes: Sequence[PassInputs]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for position, inputs in enumerate(passes):
            last = position == len(passes) - 1
            with self._without_reduction(skip=not last):
                result = self._task.predict(self.model, inputs)
                self._finite.logical_and_(torch.isfinite(result.loss.detach()))
                self._backward(result.loss / len(passes))
            with torch.no_grad():
                for name, value in result.sums().items():
                    self._total(name).add_(value)
        self._update()

    def _total(self, name: str) -> torch.Tensor:
        if name not in self._sums:  # before a graph is recorded
            self._sums[name] = torch.zeros((), dtype=torch.float64, device=self.device)
        return self._sums[name]

    def _backward(self, loss: torch.Tensor) -> None:
        if self.scaler is None:
            loss.backward()
        else:
            # Once the loss is NaN it stays NaN, so that the scaler skips every later step too.
            sticky = torch.ones_like(loss).masked_fill_(~self._finite, torch.nan)
            self.scaler.scale(loss * sticky).backward()

    @torch.no_grad()
    def _update(self) -> None:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
            self._norm.copy_(get_total_norm(gradients))
            self._agree()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self._norm.copy_(get_total_norm(gradients))
            self._finite.logical_and_(torch.isfinite(self._norm))
            self._agree()
            self._skip.copy_(~self._finite)
            setattr(self.optimizer, _SKIP, self._skip)
            self.optimizer.step()
        self._finite_steps.add_(self._finite)

    def _agree(self) -> None:
        if self._world.size > 1:
            bad = (~self._finite).float()
            self._finite.copy_(self._world.max(bad) == 0)

    def _without_reduction(self, *, skip: bool) -> AbstractContextManager[None]:
        """Return a context in which gradients stay on their rank, if ``skip``."""
        if skip and isinstance(self.model, DistributedDataParallel):
            return cast(AbstractContextManager[None], self.model.no_sync())
        return nullcontext()

    def read(self) -> Totals:
        """Wait for the device, return the totals since the last reading and reset them.

        All ranks read after the same step and get the same totals.
        """
        sums = torch.zeros(0, dtype=torch.float64, device=self.device)
        if self._sums:
            sums = self._world.sum(torch.stack(list(self._sums.values())))
        items = max(1, self._items * self._world.size)
        totals = Totals(
            means={name: x / items for name, x in zip(self._sums, sums.tolist(), strict=True)},
            gradient_norm=float(self._norm),
            finite_steps=int(self._finite_steps),
        )
        for total in self._sums.values():
            total.zero_()
        self._items = 0
        return totals
