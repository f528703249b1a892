"""The tensors of a training that a checkpoint holds, by name: those of model and optimizer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fastrot.errors import MismatchError
from fastrot.training.optim import load_optimizer_tensors, optimizer_tensors


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
