"""The two layers of our backbones that a fused step computes differently, and their choice.

Both are torch's own layers unless ``use_batch_norm`` changes them, with torch's parameters under
torch's names, so that weights do not depend on how they were trained. ``fastest_batch_norm``
returns the best choice for a device.

Shapes: N views, C channels, H and W rows and columns.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from fastrot.kernels.batchnorm.op import batch_norm
from fastrot.kernels.dispatch import KernelUnavailableError, choose

Engine = Literal["torch", "fused", "apex"]
"""What normalises: three operations of torch, one of ours, or one of NVIDIA apex."""


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation and what follows it in a ResNet: adding the residual and ReLU.

    Args:
        channels: C.
        relu: whether ReLU follows.

    Attributes:
        engine: ``torch``: three torch operations. ``fused``: one of ours. ``apex``: one of
            NVIDIA apex, in float16 on a GPU.
        group: name of the process group that shares statistics; only ``fused`` uses it. (The
            group itself could not be copied with the model.)
    """

    def __init__(self, channels: int, *, relu: bool = True) -> None:
        super().__init__(channels)
        self.relu = relu
        self.engine: Engine = "torch"
        self.group = ""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape, which ``residual`` also has."""
        if self.engine == "fused":
            return self._fused(x, residual)
        if self.engine == "apex" and self.training:
            from fastrot.models.apex import batch_norm as apex_batch_norm

            return apex_batch_norm(self, x, residual)
        return after(super().forward(x), residual, relu=self.relu)

    def _fused(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        if self.training:
            self.num_batches_tracked.add_(1)
        return batch_norm(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            residual=residual,
            relu=self.relu,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            group=self.group,
        )


class SyncBatchNorm(nn.SyncBatchNorm):
    """The same with torch's statistics over all ranks, which it supports on GPUs only."""

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__(norm.num_features)
        self.relu = norm.relu
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape, like ``BatchNorm.forward``."""
        return after(super().forward(x), residual, relu=self.relu)


class FirstConv2d(nn.Conv2d):
    """A convolution that also takes views with a fourth channel of zeros.

    Tensor cores work best with an even number of input channels. The weight keeps its three; it is
    padded with zeros when used, so result and gradient are the same.
    """

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """Map (N, 3 or 4, H, W) to (N, out_channels, H', W')."""
        more = views.shape[1] - self.in_channels
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, more)) if more else self.weight
        return F.conv2d(views, weight, self.bias, self.stride, self.padding, self.dilation)


def after(normal: torch.Tensor, residual: torch.Tensor | None, *, relu: bool) -> torch.Tensor:
    """Apply what follows a normalisation with torch's operations; ``normal`` may be overwritten."""
    if residual is not None:
        normal = normal + residual
    return torch.relu_(normal) if relu else normal


def fastest_batch_norm(device: torch.device) -> tuple[Engine, str]:
    """Return the fastest engine on this device, ``fused`` or ``torch``, and the reason."""
    if device.type != "cuda":
        return "torch", "the fastest on a CPU"
    try:
        choice = choose("batch_norm", device.type)
    except KernelUnavailableError as error:
        return "torch", f"not fused: {error}"
    if choice.implementation != "triton":
        return "torch", f"not fused: {choice.reason}"
    return "fused", "the fastest on this GPU"


def use_batch_norm(
    model: nn.Module, engine: Engine, group: torch.distributed.ProcessGroup | None = None
) -> None:
    """Make every ``BatchNorm`` of a model use this engine.

    Args:
        model: modified in place; NIN and ResNets contain only our ``BatchNorm``.
        engine: the engine to use.
        group: ranks that share their statistics (``fused`` only).
    """
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.engine = engine
            module.group = "" if group is None else group.group_name


def share_batch_norm(model: nn.Module) -> None:
    """Replace every ``BatchNorm`` by torch's SyncBatchNorm with the same tensors."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, BatchNorm):
                setattr(module, name, SyncBatchNorm(child))
