"""The fused batch normalisation in Triton: what ``reference`` defines, on one GPU.

The forward and the backward pass each read the batch twice, with one small kernel in between.

Shapes: M rows, C channels, B = ceil(C / 8) bytes, R groups of rows, one per program.
"""

from __future__ import annotations

import torch
import triton

from fastrot.kernels.batchnorm.triton_parts import coefficients_kernel, finish_kernel, merge_kernel
from fastrot.kernels.batchnorm.triton_passes import (
    gradient_kernel,
    moments_kernel,
    normalise_kernel,
    sums_kernel,
)

# A thread moves 16 bytes at once: 8 channels of 16 bits. A tile of 128 channels has rows of two
# cache lines; with fewer channels its rows are adjacent in memory.
_CHANNELS = 128  # at most, per tile; a power of two, at least 8, for the mask's bytes
# A vector with fewer values than threads, or bytes whose alignment Triton cannot prove, are loaded
# where they are used; other loads go through shared memory and wait at barriers.
_WARPS = 8
_ELEMENTS = 8192  # per tile where nothing is summed: 4 loads of 16 bytes per thread and tensor
_LANES = 2048  # running sums per program: 8 channels per thread
_DEPTH = 4  # rows that one step adds to each of them
_STAGES = 3  # 2 steps are in flight to shared memory meanwhile: 32 KB per program at 16 bits
# Programs that share a reduction. Each of an H200's 132 processors has registers for 2 programs
# that find moments or 4 that sum gradients: all run at once, with at least 64 KB in flight to every
# processor.
_MOMENTS_PROGRAMS, _SUMS_PROGRAMS = 264, 396
_MERGED = 8  # channels that a program merges: memory is read in units of 32 bytes
_PARTS = 512  # groups of rows that it merges at once, at most


def moments(x: torch.Tensor) -> torch.Tensor:
    """Compute ``reference.moments`` for R groups of rows."""
    rows, channels = x.shape
    width, lanes = _width(channels)
    pieces, parts = _dealt(rows, channels, _DEPTH * lanes, _MOMENTS_PROGRAMS)
    result = x.new_empty((parts, 3, channels), dtype=torch.float32)
    moments_kernel[(pieces, parts)](
        x,
        result,
        rows,
        channels,
        DEPTH=_DEPTH,
        STAGES=_STAGES,
        ROWS=lanes,
        CHANNELS=width,
        num_warps=_WARPS,
    )
    return result


def merge(parts: torch.Tensor) -> torch.Tensor:
    """Compute ``reference.merge``."""
    count, _, channels = parts.shape
    merged = torch.empty_like(parts[0])
    merge_kernel[(-(-channels // _MERGED),)](parts, merged, channels, count, **_merging(count))
    return merged


def finish(
    parts: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """Compute ``reference.finish``."""
    count, _, channels = parts.shape
    statistics = parts.new_empty((5, channels))
    finish_kernel[(-(-channels // _MERGED),)](
        parts,
        weight,
        bias,
        running_mean,
        running_var,
        statistics,
        momentum,
        eps,
        channels,
        count,
        **_merging(count),
    )
    return statistics


def normalise(
    x: torch.Tensor,
    statistics: torch.Tensor,
    residual: torch.Tensor | None,
    relu: bool,
    y: torch.Tensor,
    mask: torch.Tensor | None,
) -> None:
    """Compute ``reference.normalise``."""
    scale, shift = statistics[2], statistics[3]
    _normalise(x, scale, shift, scale, shift, 0.0, False, residual, relu, y, mask)


def normalise_frozen(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None,
    relu: bool,
    y: torch.Tensor,
) -> None:
    """Compute ``reference.normalise_frozen``."""
    _normalise(x, weight, bias, running_mean, running_var, eps, True, residual, relu, y, None)


def gradient_sums(
    dy: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None, statistics: torch.Tensor
) -> torch.Tensor:
    """Compute ``reference.gradient_sums`` for R groups of rows."""
    rows, channels = x.shape
    width, lanes = _width(channels)
    pieces, parts = _dealt(rows, channels, _DEPTH // 2 * lanes, _SUMS_PROGRAMS)
    result = x.new_empty((parts, 2, channels), dtype=torch.float32)
    sums_kernel[(pieces, parts)](
        dy,
        x,
        x if mask is None else mask,
        statistics[0],
        statistics[1],
        result,
        rows,
        channels,
        -(-channels // 8),
        RELU=mask is not None,
        STAGES=_STAGES,
        DEPTH=_DEPTH // 2,  # two tensors are read
        ROWS=lanes,
        CHANNELS=width,
        num_warps=_WARPS,
    )
    return result


def coefficients(
    parts: torch.Tensor, statistics: torch.Tensor, total: torch.Tensor, projected: torch.Tensor
) -> torch.Tensor:
    """Compute ``reference.coefficients``."""
    count, _, channels = parts.shape
    bent = parts.new_empty((2, channels))
    coefficients_kernel[(-(-channels // _MERGED),)](
        parts, statistics, total, projected, bent, channels, count, **_merging(count)
    )
    return bent


def gradient(
    dy: torch.Tensor,
    x: torch.Tensor,
    mask: torch.Tensor | None,
    statistics: torch.Tensor,
    bent: torch.Tensor,
    dx: torch.Tensor,
    dresidual: torch.Tensor | None,
) -> None:
    """Compute ``reference.gradient``."""
    rows, channels = x.shape
    width, lanes = _width(channels, _ELEMENTS)
    gradient_kernel[(-(-rows // lanes) * -(-channels // width),)](
        dy,
        x,
        x if mask is None else mask,
        statistics[2],
        bent[0],
        bent[1],
        dx,
        dx if dresidual is None else dresidual,
        rows,
        channels,
        -(-channels // 8),
        RESIDUAL=dresidual is not None,
        RELU=mask is not None,
        ROWS=lanes,
        CHANNELS=width,
        num_warps=_WARPS,
    )


def _normalise(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    eps: float,
    frozen: bool,
    residual: torch.Tensor | None,
    relu: bool,
    y: torch.Tensor,
    mask: torch.Tensor | None,
) -> None:
    rows, channels = x.shape
    width, lanes = _width(channels, _ELEMENTS)
    normalise_kernel[(-(-rows // lanes) * -(-channels // width),)](
        x,
        scale,
        shift,
        mean,
        variance,
        x if residual is None else residual,
        y,
        x if mask is None else mask,
        eps,
        rows,
        channels,
        -(-channels // 8),
        FROZEN=frozen,
        RESIDUAL=residual is not None,
        RELU=relu,
        MASK=mask is not None,
        ROWS=lanes,
        CHANNELS=width,
        num_warps=_WARPS,
    )


def _width(channels: int, elements: int = _LANES) -> tuple[int, int]:
    """Return the number of channels of a tile, and of rows."""
    width = min(_CHANNELS, max(8, triton.next_power_of_2(channels)))
    return width, elements // width


def _dealt(rows: int, channels: int, step: int, programs: int) -> tuple[int, int]:
    """Return the grid: tiles across the channels, and groups that share the steps over rows."""
    pieces = -(-channels // _width(channels)[0])
    return pieces, min(-(-rows // step), max(1, programs // pieces))


def _merging(count: int) -> dict[str, int]:
    return {"PARTS": min(_PARTS, max(16, triton.next_power_of_2(count))), "CHANNELS": _MERGED}
