"""The fused batch normalisation in Triton: two passes forward, two backward.

Statistics are merged pairwise (Chan, Golub and LeVeque, 1983), so no square of a mean is ever
subtracted from a mean of squares. Partial results are reduced in a fixed order: the same inputs
give the same bits.

Shapes: M rows, C channels, B = ceil(C / 8) bytes, R parts that the rows are dealt out in.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_CHANNELS = 64  # a tile's, 128 bytes a row at 16 bits; a multiple of 8, for the mask's bytes
_ROWS = 32  # a tile's
_PARTS_AT_ONCE = 64  # of the partial results, when they are merged
_PROGRAMS = 1024  # about so many share a reduction: some for each of an H200's 132 processors


@triton.jit
def _tile(row, channel, M, C):
    """Offsets of a tile of a matrix (M, C), and which of them are inside."""
    return row[:, None].to(tl.int64) * C + channel[None, :], (row < M)[:, None] & (channel < C)[
        None, :
    ]


@triton.jit
def _passed(
    dy_ptr, mask_ptr, row, channel, M, C, B, RELU: tl.constexpr
):  # dy where ReLU let it pass, float32
    offsets, inside = _tile(row, channel, M, C)
    g = tl.load(dy_ptr + offsets, mask=inside, other=0).to(tl.float32)
    if RELU:
        byte = row[:, None].to(tl.int64) * B + (channel // 8)[None, :]
        bits = tl.load(mask_ptr + byte, mask=inside, other=0).to(tl.int32)
        g = tl.where((bits >> (channel % 8)[None, :]) & 1 != 0, g, 0.0)
    return g


@triton.jit
def _moments_kernel(
    x_ptr,  # (M, C)
    means_ptr,  # (R, C), float32
    deviations_ptr,  # (R, C), float32
    M,
    C,
    EACH,  # rows of a part
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.program_id(1) * EACH
    end = tl.minimum(first + EACH, M)
    mean = tl.full((CHANNELS,), 0.0, tl.float32)
    deviation = tl.full((CHANNELS,), 0.0, tl.float32)
    for start in range(first, end, ROWS):
        row = start + tl.arange(0, ROWS)
        offsets, inside = _tile(row, channel, end, C)
        x = tl.load(x_ptr + offsets, mask=inside, other=0).to(tl.float32)
        count = tl.minimum(end - start, ROWS).to(tl.float32)
        so_far = (start - first).to(tl.float32)
        own_mean = tl.sum(x, 0) / count
        away = tl.where(inside, x - own_mean[None, :], 0.0)
        apart = own_mean - mean
        mean += apart * (count / (so_far + count))
        deviation += tl.sum(away * away, 0) + apart * apart * (so_far * count / (so_far + count))
    part = tl.program_id(1).to(tl.int64) * C + channel
    tl.store(means_ptr + part, mean, mask=channel < C)
    tl.store(deviations_ptr + part, deviation, mask=channel < C)


@triton.jit
def _merge_kernel(
    means_ptr,  # (R, C), float32
    deviations_ptr,  # (R, C), float32
    mean_ptr,  # (C,), float32
    deviation_ptr,  # (C,), float32
    M,
    C,
    R,
    EACH,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    mean = tl.full((CHANNELS,), 0.0, tl.float32)
    for start in range(0, R, PARTS):
        part = start + tl.arange(0, PARTS)
        offsets, inside = _tile(part, channel, R, C)
        share = tl.minimum(M - part * EACH, EACH).to(tl.float32) / M
        means = tl.load(means_ptr + offsets, mask=inside, other=0)
        mean += tl.sum(tl.where(inside, means * share[:, None], 0.0), 0)
    deviation = tl.full((CHANNELS,), 0.0, tl.float32)
    for start in range(0, R, PARTS):
        part = start + tl.arange(0, PARTS)
        offsets, inside = _tile(part, channel, R, C)
        count = tl.minimum(M - part * EACH, EACH).to(tl.float32)
        apart = tl.load(means_ptr + offsets, mask=inside, other=0) - mean[None, :]
        own = tl.load(deviations_ptr + offsets, mask=inside, other=0)
        deviation += tl.sum(tl.where(inside, own + apart * apart * count[:, None], 0.0), 0)
    tl.store(mean_ptr + channel, mean, mask=channel < C)
    tl.store(deviation_ptr + channel, deviation, mask=channel < C)


@triton.jit
def _normalise_kernel(
    x_ptr,  # (M, C)
    scale_ptr,  # (C,), float32
    shift_ptr,  # (C,), float32
    residual_ptr,  # (M, C)
    y_ptr,  # (M, C)
    mask_ptr,  # (M, B), uint8
    M,
    C,
    B,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    MASK: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    offsets, inside = _tile(row, channel, M, C)
    scale = tl.load(scale_ptr + channel, mask=channel < C, other=0)
    shift = tl.load(shift_ptr + channel, mask=channel < C, other=0)
    y = (
        tl.load(x_ptr + offsets, mask=inside, other=0).to(tl.float32) * scale[None, :]
        + shift[None, :]
    )
    if RESIDUAL:
        y += tl.load(residual_ptr + offsets, mask=inside, other=0).to(tl.float32)
    if MASK:
        bits = (inside & (y > 0)).to(tl.int32) << (channel % 8)[None, :]
        bytes_ = tl.sum(tl.reshape(bits, (ROWS, CHANNELS // 8, 8)), 2)
        byte = tl.program_id(1) * (CHANNELS // 8) + tl.arange(0, CHANNELS // 8)
        where, there = _tile(row, byte, M, B)
        tl.store(mask_ptr + where, bytes_.to(tl.uint8), mask=there)
    if RELU:
        y = tl.maximum(y, 0.0)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _sums_kernel(
    dy_ptr,  # (M, C)
    x_ptr,  # (M, C)
    mask_ptr,  # (M, B), uint8
    mean_ptr,  # (C,), float32
    rstd_ptr,  # (C,), float32
    totals_ptr,  # (R, C), float32
    projections_ptr,  # (R, C), float32
    M,
    C,
    B,
    EACH,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.program_id(1) * EACH
    end = tl.minimum(first + EACH, M)
    mean = tl.load(mean_ptr + channel, mask=channel < C, other=0)
    rstd = tl.load(rstd_ptr + channel, mask=channel < C, other=0)
    total = tl.full((CHANNELS,), 0.0, tl.float32)
    projected = tl.full((CHANNELS,), 0.0, tl.float32)
    for start in range(first, end, ROWS):
        row = start + tl.arange(0, ROWS)
        g = _passed(dy_ptr, mask_ptr, row, channel, end, C, B, RELU)
        offsets, inside = _tile(row, channel, end, C)
        x = tl.load(x_ptr + offsets, mask=inside, other=0).to(tl.float32)
        total += tl.sum(g, 0)
        projected += tl.sum(g * ((x - mean[None, :]) * rstd[None, :]), 0)
    part = tl.program_id(1).to(tl.int64) * C + channel
    tl.store(totals_ptr + part, total, mask=channel < C)
    tl.store(projections_ptr + part, projected, mask=channel < C)


@triton.jit
def _gradient_kernel(
    dy_ptr,  # (M, C)
    x_ptr,  # (M, C)
    mask_ptr,  # (M, B), uint8
    slope_ptr,  # (C,), float32
    bend_ptr,  # (C,), float32
    offset_ptr,  # (C,), float32
    dx_ptr,  # (M, C)
    dresidual_ptr,  # (M, C)
    M,
    C,
    B,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    offsets, inside = _tile(row, channel, M, C)
    g = _passed(dy_ptr, mask_ptr, row, channel, M, C, B, RELU)
    x = tl.load(x_ptr + offsets, mask=inside, other=0).to(tl.float32)
    slope = tl.load(slope_ptr + channel, mask=channel < C, other=0)
    bend = tl.load(bend_ptr + channel, mask=channel < C, other=0)
    offset = tl.load(offset_ptr + channel, mask=channel < C, other=0)
    dx = slope[None, :] * g + (bend[None, :] * x + offset[None, :])
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    if RESIDUAL:
        tl.store(dresidual_ptr + offsets, g.to(dresidual_ptr.dtype.element_ty), mask=inside)


def moments(x: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Fill as ``reference.moments`` does; tensors contiguous, on one GPU."""
    (rows, channels), (parts, each) = x.shape, _parts(*x.shape)
    partial = x.new_empty((2, parts, channels), dtype=torch.float32)
    groups = -(-channels // _CHANNELS)
    _moments_kernel[(groups, parts)](
        x, partial[0], partial[1], rows, channels, each, ROWS=_ROWS, CHANNELS=_CHANNELS
    )
    _merge_kernel[(groups,)](
        partial[0],
        partial[1],
        mean,
        deviation,
        rows,
        channels,
        parts,
        each,
        PARTS=_PARTS_AT_ONCE,
        CHANNELS=_CHANNELS,
    )


def normalise(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    residual: torch.Tensor | None,
    relu: bool,
    y: torch.Tensor,
    mask: torch.Tensor | None,
) -> None:
    """Fill as ``reference.normalise`` does; tensors contiguous, on one GPU."""
    rows, channels = x.shape
    _normalise_kernel[_tiles(rows, channels)](
        x,
        scale,
        shift,
        x if residual is None else residual,
        y,
        x if mask is None else mask,
        rows,
        channels,
        -(-channels // 8),
        RESIDUAL=residual is not None,
        RELU=relu,
        MASK=mask is not None,
        ROWS=_ROWS,
        CHANNELS=_CHANNELS,
    )


def gradient_sums(
    dy: torch.Tensor,
    x: torch.Tensor,
    mask: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    total: torch.Tensor,
    projected: torch.Tensor,
) -> None:
    """Fill as ``reference.gradient_sums`` does; tensors contiguous, on one GPU."""
    (rows, channels), (parts, each) = x.shape, _parts(*x.shape)
    partial = x.new_empty((2, parts, channels), dtype=torch.float32)
    _sums_kernel[(-(-channels // _CHANNELS), parts)](
        dy,
        x,
        x if mask is None else mask,
        mean,
        rstd,
        partial[0],
        partial[1],
        rows,
        channels,
        -(-channels // 8),
        each,
        RELU=mask is not None,
        ROWS=_ROWS,
        CHANNELS=_CHANNELS,
    )
    torch.sum(partial[0], 0, out=total)
    torch.sum(partial[1], 0, out=projected)


def gradient(
    dy: torch.Tensor,
    x: torch.Tensor,
    mask: torch.Tensor | None,
    slope: torch.Tensor,
    bend: torch.Tensor,
    offset: torch.Tensor,
    dx: torch.Tensor,
    dresidual: torch.Tensor | None,
) -> None:
    """Fill as ``reference.gradient`` does; tensors contiguous, on one GPU."""
    rows, channels = x.shape
    _gradient_kernel[_tiles(rows, channels)](
        dy,
        x,
        x if mask is None else mask,
        slope,
        bend,
        offset,
        dx,
        dx if dresidual is None else dresidual,
        rows,
        channels,
        -(-channels // 8),
        RESIDUAL=dresidual is not None,
        RELU=mask is not None,
        ROWS=_ROWS,
        CHANNELS=_CHANNELS,
    )


def _tiles(rows: int, channels: int) -> tuple[int, int]:
    return -(-rows // _ROWS), -(-channels // _CHANNELS)


def _parts(rows: int, channels: int) -> tuple[int, int]:
    """How many parts the rows are dealt out in, and how many rows each has."""
    wanted = max(1, _PROGRAMS // -(-channels // _CHANNELS))
    each = -(-rows // wanted)
    each = -(-each // _ROWS) * _ROWS
    return -(-rows // each), each
