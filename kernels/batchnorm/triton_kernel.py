"""The fused batch normalisation in Triton: what ``reference`` defines, on one GPU.

Two passes over the batch forward, two backward, and one small kernel between the two.

Shapes: M rows, C channels, B = ceil(C / 8) bytes, R parts that the rows are dealt out in.
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
# cache lines; with fewer channels its rows lie one behind the other.
_CHANNELS = 128  # a tile's at most; a power of two, 8 at least, for the mask's bytes
# Triton loads a vector of fewer values than there are threads, and bytes that it cannot see to be
# aligned, where they are used; others it sends through shared memory, behind barriers.
_WARPS = 8
_ELEMENTS = 8192  # a tile's where nothing is summed: 4 loads of 16 bytes a thread and tensor
_LANES = 2048  # running sums of a program: 8 channels a thread
_DEPTH = 4  # rows that go into each of them in one step
_STAGES = 3  # 2 steps are on their way to shared memory meanwhile: 32 KB a program at 16 bits
# Programs that share a reduction. Each of an H200's 132 processors has registers for 2 that find
# moments and for 4 that add up gradients: all are at work at once, with 64 KB or more on the way to
# every processor.
_MOMENTS_PROGRAMS, _SUMS_PROGRAMS = 264, 396
_MERGED = 8  # channels that a program merges: the 32 bytes that memory is read in
_PARTS = 512  # that it merges at once, at most


def moments(x: torch.Tensor) -> torch.Tensor:
    """As ``reference.moments``, of R parts."""
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
    """As ``reference.merge``."""
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
    """As ``reference.finish``."""
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
    """Fill as ``reference.normalise`` does."""
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
    """Fill as ``reference.normalise_frozen`` does."""
    _normalise(x, weight, bias, running_mean, running_var, eps, True, residual, relu, y, None)


def gradient_sums(
    dy: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None, statistics: torch.Tensor
) -> torch.Tensor:
    """As ``reference.gradient_sums``, of R parts."""
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
        DEPTH=_DEPTH // 2,  # of two tensors
        ROWS=lanes,
        CHANNELS=width,
        num_warps=_WARPS,
    )
    return result


def coefficients(
    parts: torch.Tensor, statistics: torch.Tensor, total: torch.Tensor, projected: torch.Tensor
) -> torch.Tensor:
    """As ``reference.coefficients``."""
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
    """Fill as ``reference.gradient`` does."""
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
    """Channels of a tile, and rows."""
    width = min(_CHANNELS, max(8, triton.next_power_of_2(channels)))
    return width, elements // width


def _dealt(rows: int, channels: int, step: int, programs: int) -> tuple[int, int]:
    """Pieces of the channels, and parts that share the steps through the rows: a grid."""
    pieces = -(-channels // _width(channels)[0])
    return pieces, min(-(-rows // step), max(1, programs // pieces))


def _merging(count: int) -> dict[str, int]:
    return {"PARTS": min(_PARTS, max(16, triton.next_power_of_2(count))), "CHANNELS": _MERGED}
