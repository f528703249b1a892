"""SGD and LARS, the learning rate as a pure function of the step, and what a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fastrot.config import OptimConfig
from fastrot.errors import MismatchError

_LARS_EPS = 1e-8  # avoids division by zero


def learning_rate(step: int, steps_per_epoch: int, total_steps: int, config: OptimConfig) -> float:
    """Return the learning rate of one optimizer step.

    Warm-up is linear in steps from ``warmup_ratio`` to 1 and multiplies the scheduled rate, as
    in mmcv's ``LrUpdaterHook`` with ``warmup='linear'`` (the rate of a step schedule is still
    constant then).

    Args:
        step: optimizer step, from 0.
        steps_per_epoch: optimizer steps per epoch; the durations of ``config`` are in epochs.
        total_steps: length of the schedule in steps (cosine ends there).
        config: the schedule.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    warmup = 1.0
    if step < warmup_steps:
        warmup = config.warmup_ratio + (1 - config.warmup_ratio) * step / warmup_steps
    scheduled = 1.0
    if config.schedule == "step":
        passed = sum(step >= round(epoch * steps_per_epoch) for epoch in config.milestones)
        scheduled = config.gamma**passed
    elif config.schedule == "cosine" and step >= warmup_steps:
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        half_wave = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        scheduled = config.final_ratio + (1 - config.final_ratio) * half_wave
    return config.learning_rate * warmup * scheduled


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """Build SGD or LARS; a step is one kernel (``fused``) that also takes a "skip this step" flag.

    With ``decay_norm_and_bias=False``, batch-norm parameters and biases (every tensor of one
    dimension, whatever its name) form a group without decay.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1 or config.decay_norm_and_bias]
    rest = [p for p in model.parameters() if p.ndim <= 1 and not config.decay_norm_and_bias]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, config.weight_decay), (rest, 0.0))
        if params
    ]
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "momentum": config.momentum,
        "nesterov": config.nesterov,
        "fused": True,
    }
    optimizer = (
        LARS(groups, trust_coefficient=config.trust_coefficient, **settings)
        if config.name == "lars"
        else torch.optim.SGD(groups, **settings)
    )
    if config.momentum:
        # The first step is the same as without them. But torch would allocate them uninitialised,
        # and never initialise them if a gradient scaler skips the first step.
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(
                parameter, requires_grad=False
            )
    return optimizer


class LARS(torch.optim.SGD):
    """SGD after scaling the gradients layer by layer (You et al., 2017); it uses SGD's kernel.

    The gradient g of a weight w with decay d becomes ``trust * |w| / (|g| + d |w|) * (g + d w)``.
    Tensors of one dimension (batch norm, biases) are left to SGD. Momentum, "skip this step" flags
    and rates that are tensors are SGD's; the scales are computed on the device.

    Args:
        params: groups; the ``weight_decay`` of a group is applied before its tensors are scaled.
        trust_coefficient: how large a step may be, relative to the weights.
        **settings: arguments of SGD.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, trust_coefficient: float, **settings: Any
    ) -> None:
        groups: list[dict[str, Any]] = []
        for group in params:
            decay = group.get("weight_decay", 0.0)
            adapted = [p for p in group["params"] if p.ndim > 1]
            plain = [p for p in group["params"] if p.ndim <= 1]
            # SGD's own decay of adapted tensors is 0: their decay is scaled with the gradient.
            groups += [{"params": adapted, "weight_decay": 0.0, "scaled_decay": decay}] * bool(
                adapted
            )
            groups += [{"params": plain, "weight_decay": decay}] * bool(plain)
        self._trust = trust_coefficient
        super().__init__(groups, **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Scale the gradients in place, then update the parameters."""
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
        # A weight whose values or gradients are all zero uses the plain rate.
        scales = [
            torch.where(
                (size > 0) & (slope > 0),
                self._trust * size / (slope + decay * size + _LARS_EPS),
                1.0,
            )
            for size, slope in zip(sizes, slopes, strict=True)
        ]
        if decay:
            torch._foreach_add_(gradients, weights, alpha=decay)
        torch._foreach_mul_(gradients, scales)


def keep_rate_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Make the rate a tensor, so that a recorded step reads its current value when replayed."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def optimizer_tensors(optimizer: torch.optim.SGD, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the momentum buffers by parameter name; none without momentum."""
    buffers = {}
    for name, parameter in model.named_parameters():
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            buffers[f"{name}.momentum_buffer"] = buffer
    return buffers


def load_optimizer_tensors(
    optimizer: torch.optim.SGD, model: nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """Restore the values of the momentum buffers in place, since a graph may refer to them."""
    for name, parameter in model.named_parameters():
        saved = tensors.get(f"{name}.momentum_buffer")
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if saved is not None and buffer is not None:
            buffer.copy_(saved)


def training_tensors(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, torch.Tensor]:
    """Return parameters and buffers as ``model.NAME``, momenta as ``optimizer.NAME``."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    buffers = optimizer_tensors(optimizer, model)
    return tensors | {f"optimizer.{name}": value for name, value in buffers.items()}


def load_training_tensors(
    model: nn.Module, optimizer: torch.optim.SGD, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Restore what ``training_tensors`` returned.

    Raises:
        MismatchError: the tensors do not fit the model.
    """
    try:
        model.load_state_dict(_with_prefix(tensors, "model."))
    except RuntimeError as error:
        raise MismatchError(f"checkpoint does not fit the model: {error}") from error
    load_optimizer_tensors(optimizer, model, _with_prefix(tensors, "optimizer."))


def _with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
