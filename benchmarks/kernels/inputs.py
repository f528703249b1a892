"""Inputs of the operations of ``fastrot bench kernels``, and their results in float64.

Shapes: N images, V views of each, C channels, S side; x is (N V, C, S, S), channels-last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastrot.benchmarks.kernels import optimizer
from fastrot.benchmarks.kernels.cases import VIEWS, Case
from fastrot.benchmarks.kernels.optimizer import Weights
from fastrot.kernels.rotate import reference as rotate

MOMENTUM, EPS = 0.1, 1e-5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Photos:
    """Arguments of ``rotate_views``."""

    images: torch.Tensor  # of shape (N, S, S, 3), uint8
    turns: torch.Tensor  # of shape (N, V), uint8: always 0, 1, 2, 3, which the baselines assume
    flips: torch.Tensor  # of shape (N,), bool
    table: torch.Tensor  # of shape (256, 3)
    channels: int  # number of channels of a view


@dataclass(frozen=True)
class Layer:
    """Arguments of a batch normalisation."""

    x: torch.Tensor  # of shape (N V, C, S, S), channels-last
    residual: torch.Tensor | None  # likewise, or None
    dy: torch.Tensor  # likewise, the gradient of the result
    weight: torch.Tensor  # of shape (C,), float32
    bias: torch.Tensor  # likewise
    running_mean: torch.Tensor  # likewise
    running_var: torch.Tensor  # likewise


def photos(case: Case, device: torch.device) -> Photos:
    """Return random pixels."""
    random = torch.Generator(device).manual_seed(0)
    n = case.shape[0]
    images = torch.randint(0, 256, case.shape, dtype=torch.uint8, device=device, generator=random)
    return Photos(
        images=images,
        turns=torch.arange(VIEWS, dtype=torch.uint8, device=device).repeat(n, 1),
        flips=torch.arange(n, device=device) % 2 == 1,
        table=rotate.normalisation_table(MEAN, STD, case.dtype).to(device),
        channels=case.op.channels,
    )


def layer(case: Case, device: torch.device) -> Layer:
    """Return normal values; each channel has its own mean, scale, weight and bias."""
    random = torch.Generator(device).manual_seed(0)
    n, channels, height, width = case.shape

    def batch() -> torch.Tensor:
        rows = (n, height, width, channels)
        return torch.randn(rows, dtype=case.dtype, device=device, generator=random).permute(
            0, 3, 1, 2
        )

    def vector() -> torch.Tensor:
        return torch.rand(channels, device=device, generator=random) + 0.5

    return Layer(
        x=batch().mul_(vector()[:, None, None]).add_(vector()[:, None, None]),
        residual=batch() if case.op.residual else None,
        dy=batch(),
        weight=vector(),
        bias=vector() - 1,
        running_mean=vector(),
        running_var=vector(),
    )


def make(case: Case, device: torch.device) -> Photos | Layer | Weights:
    """Return the arguments of this case's operation."""
    if case.op.kind == "sgd":
        return optimizer.weights(device)
    return photos(case, device) if case.op.kind == "rotate" else layer(case, device)


def exact(case: Case, inputs: Photos | Layer | Weights) -> torch.Tensor:
    """Return the result, views, y or dx, in float64; views in their own dtype.

    Every implementation agrees with it up to rounding, except in elements of dx so close to ReLU's
    edge that rounding decides on which side they are.
    """
    if isinstance(inputs, Weights):
        return optimizer.exact(inputs)
    if isinstance(inputs, Photos):
        n, side = inputs.images.shape[:2]
        views = inputs.table.new_empty(n * VIEWS, side, side, inputs.channels)
        rotate.rotate_views(inputs.images, inputs.turns, inputs.flips, inputs.table, views)
        return views.permute(0, 3, 1, 2)
    x = inputs.x.double()
    if case.op.kind == "frozen":
        variance, mean = inputs.running_var.double(), inputs.running_mean.double()
    else:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    rstd = torch.rsqrt(variance + EPS)
    straight = x.sub_(mean[:, None, None]).mul_(rstd[:, None, None])
    weight, bias = inputs.weight.double()[:, None, None], inputs.bias.double()[:, None, None]
    y = straight * weight + bias
    if inputs.residual is not None:
        y += inputs.residual
    if case.op.kind != "backward":
        return y.relu_()
    g = inputs.dy.double().mul_(y > 0)
    del y
    along = (g * straight).mean((0, 2, 3), keepdim=True)
    return (
        g.sub_(g.mean((0, 2, 3), keepdim=True))
        .sub_(straight.mul_(along))
        .mul_(weight * rstd[:, None, None])
    )
