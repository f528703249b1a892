"""The optimizer's step in ``fastrot bench kernels``: SGD over all tensors of a ResNet-50.

fastrot has no kernel for it: training uses torch's fused one, and NVIDIA apex has another.

Shapes: P values, all parameters one after the other, each beginning at a cache line.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch

from fastrot.config import ModelConfig, OptimConfig
from fastrot.models.backbones import build_model
from fastrot.training.optim import build_optimizer

_LINE = 32  # float32 values per cache line
_RATE, _DECAY, _MOMENTUM = 0.1, 1e-4, 0.9


@dataclass(frozen=True)
class Weights:
    """Parameters and gradients of a step.

    Attributes:
        values: of shape (P,), float32.
        gradients: likewise.
        shapes: shapes of the parameters.
    """

    values: torch.Tensor
    gradients: torch.Tensor
    shapes: tuple[torch.Size, ...]


def parameter_shapes() -> tuple[torch.Size, ...]:
    """Return the shapes of the parameters of a ResNet-50 with the rotation head."""
    with torch.device("meta"):
        model = build_model(ModelConfig(name="resnet50"), seed=0)
    return tuple(parameter.shape for parameter in model.parameters())


def size(shapes: tuple[torch.Size, ...]) -> int:
    """Return P, including the padding of cache lines."""
    return sum(_padded(shape) for shape in shapes)


def weights(device: torch.device) -> Weights:
    """Return normal values."""
    shapes = parameter_shapes()
    random = torch.Generator(device).manual_seed(0)
    values, gradients = (
        torch.randn(size(shapes), device=device, generator=random) for _ in range(2)
    )
    return Weights(values, gradients, shapes)


def exact(given: Weights) -> torch.Tensor:
    """Return the values after one step without momentum, in float64, with the padding unchanged."""
    values, after = given.values.double(), given.values.double()
    for place in _places(given.shapes):
        old = values[place]
        after[place] = old - _RATE * (given.gradients[place].double() + _DECAY * old)
    return after


def apex_missing() -> str | None:
    """Return why apex's FusedSGD cannot run; None if it can."""
    if not torch.cuda.is_available():
        return "apex's FusedSGD needs a GPU"
    try:
        importlib.import_module("apex.optimizers")  # PyPI's apex has none
        importlib.import_module("amp_C")
    except Exception as error:  # other packages of this name can fail in any way
        return f"apex with its CUDA extensions is not installed ({type(error).__name__}: {error})"
    return None


class OptimizerStep:
    """One competitor's parameters and its step; a call returns all values, of shape (P,)."""

    def __init__(self, name: str, given: Weights) -> None:
        self._values = given.values.clone()
        self._parameters = []
        for place, shape in zip(_places(given.shapes), given.shapes, strict=True):
            parameter = torch.nn.Parameter(self._values[place].view(shape))
            parameter.grad = given.gradients[place].view(shape).clone()
            self._parameters.append(parameter)
        self._optimizer = self._made(name)
        self._step = torch.compile(self._optimizer.step) if name == "compiled" else (
            self._optimizer.step
        )  # fmt: skip

    def _made(self, name: str) -> Any:
        settings: dict[str, Any] = {"lr": _RATE, "momentum": _MOMENTUM, "weight_decay": _DECAY}
        if name == "fastrot":
            module = torch.nn.Module()
            for number, parameter in enumerate(self._parameters):
                module.register_parameter(str(number), parameter)
            config = OptimConfig(learning_rate=_RATE, momentum=_MOMENTUM, weight_decay=_DECAY)
            return build_optimizer(module, config)
        if name == "apex":
            return importlib.import_module("apex.optimizers").FusedSGD(self._parameters, **settings)
        return torch.optim.SGD(self._parameters, foreach=name != "reference", **settings)

    def __call__(self, _: Any) -> torch.Tensor:
        """Take another step and return all values."""
        self._step()
        return self._values


def _padded(shape: torch.Size) -> int:
    return -(-shape.numel() // _LINE) * _LINE


def _places(shapes: tuple[torch.Size, ...]) -> list[slice]:
    places, start = [], 0
    for shape in shapes:
        places.append(slice(start, start + shape.numel()))
        start += _padded(shape)
    return places
