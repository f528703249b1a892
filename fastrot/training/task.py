"""What a training step needs to know of a task: the inputs of a pass, and what comes out of it.

A task prepares the inputs of a batch on the host and runs the model on them on the device. The
step, the loop and the reports know no more of it than this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn


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
