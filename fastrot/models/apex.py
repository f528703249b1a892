"""Batch normalisation by NVIDIA apex (``apex.contrib.groupbn``): a baseline to compare ours with.

It exists only if apex was built from source with ``APEX_BNP=1``; the PyPI package of that name is
something else. It takes contiguous float16 batches (N, H, W, C) on a GPU, C a multiple of 4.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from fastrot.errors import UsageError

_MODULE = "apex.contrib.groupbn.batch_norm"
_BUILD = "build apex from its source with APEX_CPP_EXT=1 APEX_CUDA_EXT=1 APEX_BNP=1"

# The apex counterpart of each of our modules, with the same tensors. It is not a submodule: names
# in a checkpoint must not depend on how a model was trained.
_TWIN = "_apex_twin"


def apex_problem() -> str | None:
    """Return why apex's batch normalisation cannot be used; None if it can."""
    try:
        importlib.import_module(_MODULE)
    except Exception as error:  # a package of this name may fail in any way
        return (
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; {_BUILD}"
        )
    return None


def require_apex() -> None:
    """Check that apex's batch normalisation is installed.

    Raises:
        UsageError: it is not installed; the message says how to install it.
    """
    if problem := apex_problem():
        raise UsageError(
            f"train.batchnorm=apex: apex.contrib.groupbn cannot be imported: {problem}"
        )


def batch_norm(
    norm: nn.BatchNorm2d, x: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    """Normalise (N, C, H, W) in training, add the residual and apply ReLU, as ``norm`` specifies.

    Raises:
        TypeError: x is not float16, the only type that apex supports.
    """
    if x.dtype != torch.float16:
        raise TypeError(f"x is {x.dtype}; apex normalises only float16; set train.precision=fp16")
    twin = norm.__dict__.get(_TWIN)
    if twin is None:
        twin = norm.__dict__[_TWIN] = _twin(norm)
    rows = x.permute(0, 2, 3, 1).contiguous()
    added = None if residual is None else residual.permute(0, 2, 3, 1).contiguous()
    y: torch.Tensor = twin(rows, added)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return y.permute(0, 3, 1, 2)


def _twin(norm: Any) -> Any:
    module = importlib.import_module(_MODULE)
    twin = module.BatchNorm2d_NHWC(norm.num_features, fuse_relu=norm.relu).to(norm.weight.device)
    twin.weight, twin.bias = norm.weight, norm.bias
    twin.running_mean, twin.running_var = norm.running_mean, norm.running_var
    twin.momentum, twin.eps = norm.momentum, norm.eps
    return twin.train()
