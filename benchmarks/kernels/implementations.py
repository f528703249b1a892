"""Implementations that ``fastrot bench kernels`` compares: fastrot, its reference, torch, apex.

An implementation of a case is a pair: a function that prepares a run, which is not timed, and the
run itself. For a backward pass, preparing is the forward pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F

from fastrot.benchmarks.kernels import apex
from fastrot.benchmarks.kernels.cases import VIEWS, Case
from fastrot.benchmarks.kernels.inputs import EPS, MEAN, MOMENTUM, STD, Layer, Photos
from fastrot.benchmarks.kernels.optimizer import OptimizerStep, Weights, apex_missing
from fastrot.kernels.batchnorm.op import batch_norm
from fastrot.kernels.dispatch import VARIABLE
from fastrot.kernels.rotate.op import rotate_views

NAMES = ("fastrot", "reference", "torch", "compiled", "apex")
"""Names of the implementations; the first is the subject."""

Norm = Callable[[Layer, bool], torch.Tensor]
Function = TypeVar("Function", bound=Callable[..., torch.Tensor])


class Implementation(NamedTuple):
    """Functions of one implementation.

    Attributes:
        begin: returns the argument for ``run``.
        run: the timed function; its result is that of ``inputs.exact``.
    """

    begin: Callable[[], Any]
    run: Callable[[Any], torch.Tensor]


def missing(name: str, case: Case) -> str | None:
    """Return why an implementation cannot run this case; None if it can."""
    if name != "apex":
        return None
    return apex_missing() if case.op.kind == "sgd" else apex.missing(case)


def implementation(name: str, case: Case, inputs: Photos | Layer | Weights) -> Implementation:
    """Return the implementation of this name."""
    if isinstance(inputs, Weights):
        return Implementation(lambda: None, OptimizerStep(name, inputs))
    if isinstance(inputs, Photos):
        return Implementation(lambda: None, _rotation(name, inputs))
    norm: Norm
    if name == "apex":
        norm = apex.layer_norm(inputs)
    elif name == "compiled":
        norm = _compiled(_torch_norm)
    else:
        norm = _torch_norm if name == "torch" else _own_norm
    forced = "reference" if name == "reference" else None
    return _normalisation(norm, forced, case, inputs)


def _normalisation(norm: Norm, forced: str | None, case: Case, inputs: Layer) -> Implementation:
    """Return a normalisation whose forward keeps what backward needs to compute all gradients."""

    def leaves() -> Layer:
        for tensor in (inputs.x, inputs.residual, inputs.weight, inputs.bias):
            if tensor is not None:
                tensor.requires_grad_(case.op.kind != "frozen")
        return inputs

    def forward(given: Layer) -> torch.Tensor:
        with _forcing(forced):
            if case.op.kind == "frozen":
                with torch.no_grad():
                    return norm(given, False)
            return norm(given, True)

    def backward(y: torch.Tensor) -> torch.Tensor:
        given = [
            t for t in (inputs.x, inputs.weight, inputs.bias, inputs.residual) if t is not None
        ]
        with _forcing(forced):
            return torch.autograd.grad(y, given, inputs.dy)[0]

    if case.op.kind == "backward":
        return Implementation(lambda: forward(leaves()), backward)
    return Implementation(leaves, forward)


def _own_norm(given: Layer, training: bool) -> torch.Tensor:
    return batch_norm(
        given.x,
        given.weight,
        given.bias,
        given.running_mean,
        given.running_var,
        residual=given.residual,
        training=training,
        momentum=MOMENTUM,
        eps=EPS,
    )


def _torch_norm(given: Layer, training: bool) -> torch.Tensor:
    """Normalise as torchvision's ResNet does."""
    y = F.batch_norm(
        given.x,
        given.running_mean,
        given.running_var,
        given.weight,
        given.bias,
        training,
        MOMENTUM,
        EPS,
    )
    if given.residual is not None:
        y = y + given.residual
    return F.relu(y, inplace=True)


def _rotation(name: str, inputs: Photos) -> Callable[[Any], torch.Tensor]:
    views = _compiled(_torch_views) if name == "compiled" else _torch_views
    forced = "reference" if name == "reference" else None
    # Made once: in a run the host would wait for these copies.
    mean, std = (torch.tensor(values, device=inputs.images.device) for values in (MEAN, STD))

    def run(_: Any) -> torch.Tensor:
        if name in ("torch", "compiled"):
            return views(
                inputs.images, inputs.flips, mean, std, inputs.table.dtype, inputs.channels
            )
        with _forcing(forced):
            return rotate_views(
                inputs.images, inputs.turns, inputs.flips, inputs.table, inputs.channels
            )

    return run


def _torch_views(
    images: torch.Tensor,
    flips: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    dtype: torch.dtype,
    channels: int,
) -> torch.Tensor:
    """Compute views the usual way: normalise, flip, make all four turns, whatever ``turns`` is."""
    pixels = ((images / 255 - mean) / std).to(dtype)
    pixels = torch.where(flips[:, None, None, None], pixels.flip(2), pixels)
    if channels > 3:
        pixels = F.pad(pixels, (0, channels - 3))
    turned = [torch.rot90(pixels, turn, (1, 2)) for turn in range(VIEWS)]
    return torch.stack(turned, 1).flatten(0, 1).permute(0, 3, 1, 2)


def _compiled(function: Function) -> Function:
    """Compile for one shape: after several, torch.compile would stop compiling."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)  # type: ignore[return-value]


@contextmanager
def _forcing(name: str | None) -> Iterator[None]:
    """Force fastrot's operations to use this implementation; None: do not force any."""
    before = os.environ.get(VARIABLE)
    if name is not None:
        os.environ[VARIABLE] = name
    try:
        yield
    finally:
        if name is not None:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before
