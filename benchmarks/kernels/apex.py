"""NVIDIA apex's fused batch normalisation, for ``fastrot bench kernels`` if it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from fastrot.benchmarks.kernels.cases import Case
from fastrot.benchmarks.kernels.inputs import EPS, MOMENTUM, Layer
from fastrot.models.apex import apex_problem

_MODULE = "apex.contrib.groupbn.batch_norm"


def missing(case: Case) -> str | None:
    """Return why apex cannot run this case; None if it can."""
    if case.op.kind == "rotate":
        return "apex has no such operation"
    if case.dtype != torch.float16:
        return "apex's groupbn takes float16 only"
    if not torch.cuda.is_available():
        return "apex's groupbn needs a GPU"
    return apex_problem()


def layer_norm(inputs: Layer) -> Callable[[Layer, bool], torch.Tensor]:
    """Return apex's layer, which takes (N, H, W, C), with the vectors of ``inputs``."""
    kind: Any = importlib.import_module(_MODULE).BatchNorm2d_NHWC
    norm = kind(len(inputs.weight), fuse_relu=True, bn_group=1).to(inputs.x.device)
    norm.momentum, norm.eps = MOMENTUM, EPS
    del norm.weight, norm.bias  # parameters, replaced by plain tensors
    norm.weight, norm.bias = inputs.weight, inputs.bias
    norm.running_mean, norm.running_var = inputs.running_mean, inputs.running_var

    def run(given: Layer, training: bool) -> torch.Tensor:
        norm.train(training)
        rows = given.x.permute(0, 2, 3, 1)
        added = None if given.residual is None else given.residual.permute(0, 2, 3, 1)
        y: torch.Tensor = norm(rows, added)
        return y.permute(0, 3, 1, 2)

    return run
