"""LARS: SGD whose rate is adapted to each layer (You, Gitman, Ginsburg, 2017, arXiv:1708.03888).

The rate of a layer with weights w and gradient g is multiplied by

    trust |w| / (|g| + decay |w|)

so that no layer moves by more than a share of its own size, whatever the batch. The decay, decay w,
is part of the gradient that is scaled. Batch norm and biases (tensors of one dimension) are left
to plain SGD, as MoCo v3, SimCLR and MMSelfSup do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

_EPS = 1e-8


class LARS(torch.optim.SGD):
    """Scale the gradients layer by layer, then step as SGD does, with its kernel.

    Momentum, "skip this step" flags and rates that are tensors are SGD's; the scales are
    computed on the device.

    Args:
        params: groups; a group's ``weight_decay`` is applied by LARS for its adapted tensors.
        trust_coefficient: above.
        **settings: of SGD.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, trust_coefficient: float, **settings: Any
    ) -> None:
        groups: list[dict[str, Any]] = []
        for group in params:
            decay = group.get("weight_decay", 0.0)
            adapted = [p for p in group["params"] if p.ndim > 1]
            plain = [p for p in group["params"] if p.ndim <= 1]
            # SGD's own decay of adapted tensors is 0: theirs is scaled with the gradient.
            groups += [{"params": adapted, "weight_decay": 0.0, "scaled_decay": decay}] * bool(
                adapted
            )
            groups += [{"params": plain, "weight_decay": decay}] * bool(plain)
        self._trust = trust_coefficient
        super().__init__(groups, **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the parameters, and their gradients before."""
        for group in self.param_groups:
            if "scaled_decay" in group:
                self._scale(group)
        loss: float | None = super().step(closure)
        return loss

    def _scale(self, group: dict[str, Any]) -> None:
        decay = group["scaled_decay"]
        weights = [p for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in weights]
        if not weights:
            return
        sizes = torch._foreach_norm(weights)
        slopes = torch._foreach_norm(gradients)
        # A weight of zeros, or one without a gradient, moves by the plain rate.
        scales = [
            torch.where(
                (size > 0) & (slope > 0), self._trust * size / (slope + decay * size + _EPS), 1.0
            )
            for size, slope in zip(sizes, slopes, strict=True)
        ]
        if decay:
            torch._foreach_add_(gradients, weights, alpha=decay)
        torch._foreach_mul_(gradients, scales)
