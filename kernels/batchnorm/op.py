"""``batch_norm``: batch normalisation, residual addition and ReLU of a channels-last layer, fused.

Shapes: N images, C channels, H rows, W columns, M = N H W, B = ceil(C / 8) bytes.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch.distributed import distributed_c10d

from fastrot.kernels.batchnorm import reference
from fastrot.kernels.dispatch import choose

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    relu: bool = True,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    group: torch.distributed.ProcessGroup | str | None = None,
) -> torch.Tensor:
    """Compute relu(gamma (x - mean) / sqrt(var + eps) + beta + residual) in two passes over x.

    The result is that of ``torch.nn.BatchNorm2d`` and what follows it in a ResNet, with the same
    running statistics. All arithmetic is in float32, with one rounding at the end. Only x and one
    bit per element are saved for the backward pass.

    Args:
        x: of shape (N, C, H, W), channels-last in memory (anything else is copied), float32,
            float16 or bfloat16; or float64 (only in the reference), with all other arguments
            float64 as well.
        weight: gamma, of shape (C,), float32.
        bias: beta, likewise.
        running_mean: likewise; updated in training, used otherwise.
        running_var: running mean of the unbiased variance, likewise.
        residual: of the shape and dtype of x, added before ReLU.
        relu: clamp at 0.
        training: use the statistics of the batch; otherwise the running ones.
        momentum: weight of a batch in the running statistics.
        eps: added to the variance.
        group: process group, or its name; statistics are taken over all its ranks, whose batches
            may differ in size, as with ``torch.nn.SyncBatchNorm``.

    Returns:
        Tensor of the shape and dtype of x, channels-last.

    Raises:
        TypeError: an argument has an unsupported dtype.
        ValueError: shapes or devices do not fit, or a training batch has one value per channel.
        RuntimeError: a gradient is requested of a result that used the running statistics.
        KernelUnavailableError: FASTROT_KERNELS forces an implementation that cannot run.
    """
    _check(x, weight, bias, running_mean, running_var, residual)
    rows = _rows(x)
    added = None if residual is None else _rows(residual)
    if training:
        name = group if isinstance(group, str) else group.group_name if group else ""
        if len(rows) == 1 and (not name or _ranks(name).size() == 1):
            raise ValueError(f"x of shape {tuple(x.shape)} has one value per channel: no variance")
        with torch.no_grad():  # batch_norm's gradient includes that of the statistics
            statistics = torch.ops.fastrot.batch_norm_statistics(
                rows, weight, bias, running_mean, running_var, momentum, eps, name
            )
        y, _ = torch.ops.fastrot.batch_norm(rows, weight, bias, statistics, added, relu, name)
    else:
        y = torch.ops.fastrot.batch_norm_frozen(
            rows, weight, bias, running_mean, running_var, added, relu, eps
        )
    n, _, height, width = x.shape
    back: torch.Tensor = y.view(n, height, width, -1).permute(0, 3, 1, 2)
    return back


# torch.library gives no gradient to an operation that changes an argument, so there are two.
@torch.library.custom_op(
    "fastrot::batch_norm_statistics", mutates_args=("running_mean", "running_var")
)
def _statistics(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    momentum: float,
    eps: float,
    group: str,
) -> torch.Tensor:
    """Return ``reference.finish``'s statistics (5, C) over all ranks; update the running ones."""
    kernel = _kernel(x)
    parts = kernel.moments(x)
    if group:
        ranks, own = _ranks(group), kernel.merge(parts)
        every = own.new_empty(ranks.size() * own.numel())  # gloo requires a flat tensor
        torch.distributed.all_gather_into_tensor(every, own.flatten(), group=ranks)
        parts = every.view(ranks.size(), *own.shape)
    result: torch.Tensor = kernel.finish(
        parts, weight, bias, running_mean, running_var, momentum, eps
    )
    return result


@_statistics.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> torch.Tensor:
    return weight.new_empty(5, len(weight))


@torch.library.custom_op("fastrot::batch_norm", mutates_args=())
def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    statistics: torch.Tensor,
    residual: torch.Tensor | None,
    relu: bool,
    group: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y (M, C) and mask (M, B); weight and bias are passed only for their gradients."""
    y, mask = torch.empty_like(x), _mask(x, relu)
    _kernel(x).normalise(x, statistics, residual, relu, y, mask if relu else None)
    return y, mask


@_forward.register_fake
def _(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *_, relu, _ = rest
    return torch.empty_like(x), _mask(x, relu)


@torch.library.custom_op("fastrot::batch_norm_backward", mutates_args=())
def _backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    mask: torch.Tensor,
    statistics: torch.Tensor,
    has_residual: bool,
    group: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return gradients: x (M, C), gamma (C,), beta (C,), residual (M, C), or (0,) without one."""
    kernel = _kernel(x)
    bits = mask if mask.numel() else None
    # From this rank's rows alone: these gradients are averaged over ranks like all others.
    dbias, dweight = (statistics.new_empty(x.shape[1]) for _ in range(2))
    bent = kernel.coefficients(
        kernel.gradient_sums(dy, x, bits, statistics), statistics, dbias, dweight
    )
    if group:
        everywhere = torch.stack([dbias, dweight])
        torch.distributed.all_reduce(everywhere, group=_ranks(group))
        unused = torch.empty_like(everywhere)
        bent = kernel.coefficients(everywhere[None], statistics, unused[0], unused[1])
    dx = torch.empty_like(x)
    dresidual = torch.empty_like(x) if has_residual else x.new_empty(0)
    kernel.gradient(dy, x, bits, statistics, bent, dx, dresidual if has_residual else None)
    return dx, dweight, dbias, dresidual


@_backward.register_fake
def _(dy: torch.Tensor, x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    _, statistics, has_residual, _ = rest
    dresidual = torch.empty_like(x) if has_residual else x.new_empty(0)
    channel = statistics.new_empty(x.shape[1])
    return torch.empty_like(x), channel, torch.empty_like(channel), dresidual


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, _, _, statistics, residual, _, group = inputs
    _, mask = output
    ctx.save_for_backward(x, mask, statistics)
    ctx.has_residual, ctx.group = residual is not None, group


def _differentiate(ctx: Any, dy: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
    x, mask, statistics = ctx.saved_tensors
    dx, dweight, dbias, dresidual = torch.ops.fastrot.batch_norm_backward(
        dy.contiguous(), x, mask, statistics, ctx.has_residual, ctx.group
    )
    return dx, dweight, dbias, None, dresidual if ctx.has_residual else None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup)


@torch.library.custom_op("fastrot::batch_norm_frozen", mutates_args=())
def _frozen(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    residual: torch.Tensor | None,
    relu: bool,
    eps: float,
) -> torch.Tensor:
    """Return y (M, C) from the running statistics; it has no gradient."""
    y = torch.empty_like(x)
    _kernel(x).normalise_frozen(x, weight, bias, running_mean, running_var, eps, residual, relu, y)
    return y


@_frozen.register_fake
def _(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(x)


def _ranks(name: str) -> torch.distributed.ProcessGroup:
    """Return the process group of this name; operations take names, here as in torch itself."""
    group: torch.distributed.ProcessGroup = distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]
    return group


def _kernel(x: torch.Tensor) -> ModuleType:
    """Import and return the implementation that runs; Triton may be missing."""
    if x.dtype != torch.float64 and choose("batch_norm", x.device.type).implementation == "triton":
        from fastrot.kernels.batchnorm import triton_kernel

        return triton_kernel
    return reference


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return x as a contiguous matrix (M, C), which a channels-last batch already is."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous()


def _mask(x: torch.Tensor, relu: bool) -> torch.Tensor:
    """Return an uninitialised mask with one bit per element; empty without ReLU."""
    shape = (len(x), -(-x.shape[1] // 8)) if relu else (0,)
    return x.new_empty(shape, dtype=torch.uint8)


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    residual: torch.Tensor | None,
) -> None:
    if x.dtype not in _DTYPES:
        raise TypeError(f"x is {x.dtype} but must be float32, float16, bfloat16 or float64")
    if x.ndim != 4 or not x.numel():
        raise ValueError(f"x of shape {tuple(x.shape)} must be (N, C, H, W) and not empty")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    for name, vector in (
        ("weight", weight),
        ("bias", bias),
        ("running_mean", running_mean),
        ("running_var", running_var),
    ):
        if vector.dtype != wide:
            raise TypeError(f"{name} is {vector.dtype} but must be {str(wide)[6:]}: x is {x.dtype}")
        if vector.shape != (x.shape[1],):
            raise ValueError(
                f"{name} of shape {tuple(vector.shape)} must be ({x.shape[1]},), one per channel"
            )
        if vector.device != x.device:
            raise ValueError(f"{name} is on {vector.device} but must be on {x.device}, like x")
    if residual is not None:
        if residual.dtype != x.dtype:
            raise TypeError(f"residual is {residual.dtype} but must be {x.dtype}, like x")
        if residual.shape != x.shape or residual.device != x.device:
            raise ValueError(
                f"residual of shape {tuple(residual.shape)} on {residual.device} must be "
                f"{tuple(x.shape)} on {x.device}, as x is"
            )
