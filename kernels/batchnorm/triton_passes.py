# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton kernels that pass over a whole batch.

A reduction requests its rows STAGES - 1 steps before it adds them up, as copies to shared memory:
loads to registers would be moved down to where they are used. All its programs together go from
the first row to the last; the next pass goes from the last to the first, because the rows read
last are still in the L2 cache.

Shapes: M rows, C channels, B = ceil(C / 8) bytes, R groups of rows, one per program.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastrot.kernels.batchnorm.triton_parts import merged


@triton.jit
def _passed(g, bits, A: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Keep a tile (A, ROWS, CHANNELS) where its mask, (A, ROWS, CHANNELS / 8) bytes, has ones."""
    wide = tl.broadcast_to(bits[:, :, :, None].to(tl.int32), (A, ROWS, CHANNELS // 8, 8))
    wide = (wide >> tl.arange(0, 8)[None, None, None, :]) & 1
    return tl.where(tl.reshape(wide, (A, ROWS, CHANNELS)) != 0, g, 0.0)


@triton.jit
def _tile(first, left, channel, C, A: tl.constexpr, ROWS: tl.constexpr):
    """Return the offsets of a tile (A, ROWS, channels) of a matrix (M, C), and which are inside.

    Only the offset of the tile's beginning can exceed 32 bits.
    """
    row = tl.arange(0, A)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    offsets = tl.cast(first, tl.int64) * C + (row[:, :, None] * C + channel[None, None, :])
    return offsets, (row < left)[:, :, None] & (channel < C)[None, None, :]


@triton.jit
def _step(x_ptr, step, M, channel, C, A: tl.constexpr, ROWS: tl.constexpr):
    """Load the tile of a step."""
    first = step * A * ROWS
    offsets, inside = _tile(first, M - first, channel, C, A, ROWS)
    return tl.load(x_ptr + offsets, mask=inside, other=0)


@triton.jit
def _backwards(M, C, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the first row of this program's tile and its index across channels, last tile first.

    The grid has one axis for both: the second axis of a launch is limited to 65,535 programs.
    """
    pieces = tl.cdiv(C, CHANNELS)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    return tile // pieces * ROWS, tile % pieces


@triton.jit
def moments_kernel(
    x_ptr,  # (M, C)
    parts_ptr,  # (R, 3, C), float32: mean, sum of squared deviations, count
    M,
    C,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Compute the moments of one group of rows: every R-th step of DEPTH * ROWS rows."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    lane = tl.arange(0, ROWS)
    row = tl.arange(0, DEPTH)[:, None] * ROWS + lane[None, :]
    # Any row serves as the first mean: what is subtracted from a sum of squares below is at most
    # three quarters of it in the first step, half of it later.
    first = _step(x_ptr, tl.program_id(1) * DEPTH, M, channel, C, 1, ROWS)
    mean = tl.sum(first.to(tl.float32), 0)
    deviation = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
    count = tl.full((ROWS,), 0.0, tl.float32)
    for step in tl.range(
        tl.program_id(1), tl.cdiv(M, DEPTH * ROWS), tl.num_programs(1), num_stages=STAGES
    ):
        x = _step(x_ptr, step, M, channel, C, DEPTH, ROWS).to(tl.float32)
        left = M - step * DEPTH * ROWS
        inside = (row < left)[:, :, None] & (channel < C)[None, None, :]
        away = tl.where(inside, x - mean[None, :, :], 0.0)
        # Computed, not summed: a sum over `row < left` would go through shared memory.
        count += tl.minimum(tl.maximum((left - lane + ROWS - 1) // ROWS, 0), DEPTH).to(tl.float32)
        total = tl.sum(away, 0)
        step_of_mean = total / tl.maximum(count, 1.0)[:, None]
        mean += step_of_mean
        deviation += tl.sum(away * away, 0) - total * step_of_mean
    together, deviation, total = merged(mean, deviation, count[:, None])
    part = parts_ptr + tl.program_id(1) * 3 * C + channel
    tl.store(part, together, mask=channel < C)
    tl.store(part + C, deviation, mask=channel < C)
    tl.store(part + 2 * C, total + tl.zeros((CHANNELS,), tl.float32), mask=channel < C)


@triton.jit(do_not_specialize=["B"])  # see triton_kernel._WARPS
def normalise_kernel(
    x_ptr,  # (M, C)
    scale_ptr,  # (C,), float32; FROZEN: weight
    shift_ptr,  # (C,), float32; FROZEN: bias
    mean_ptr,  # (C,), float32, used if FROZEN
    variance_ptr,  # (C,), float32, likewise
    residual_ptr,  # (M, C)
    y_ptr,  # (M, C)
    mask_ptr,  # (M, B), uint8
    eps,
    M,
    C,
    B,
    FROZEN: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    MASK: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Apply scale, shift, residual and ReLU to one tile; store which elements ReLU let pass."""
    first, piece = _backwards(M, C, ROWS, CHANNELS)
    channel = piece * CHANNELS + tl.arange(0, CHANNELS)
    offsets, inside = _tile(first, M - first, channel, C, 1, ROWS)
    x = tl.load(x_ptr + offsets, mask=inside, other=0)
    if RESIDUAL:
        residual = tl.load(residual_ptr + offsets, mask=inside, other=0)
    scale = tl.load(scale_ptr + channel, mask=channel < C, other=0)
    shift = tl.load(shift_ptr + channel, mask=channel < C, other=0)
    if FROZEN:
        scale *= tl.rsqrt(tl.load(variance_ptr + channel, mask=channel < C, other=1) + eps)
        shift -= tl.load(mean_ptr + channel, mask=channel < C, other=0) * scale
    y = x.to(tl.float32) * scale[None, None, :] + shift[None, None, :]
    if RESIDUAL:
        y += residual.to(tl.float32)
    if MASK:
        bits = (y > 0).to(tl.int32)  # those outside are not stored, or are 0 in a last byte
        bits = tl.where(inside, bits, 0) << (channel % 8)[None, None, :]
        bytes_ = tl.sum(tl.reshape(bits, (1, ROWS, CHANNELS // 8, 8)), 3)
        byte = piece * (CHANNELS // 8) + tl.arange(0, CHANNELS // 8)
        where, there = _tile(first, M - first, byte, B, 1, ROWS)
        tl.store(mask_ptr + where, bytes_.to(tl.uint8), mask=there)
    if RELU:
        y = tl.where(y < 0, 0.0, y)  # keeps a NaN, which a maximum on a GPU would hide
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["B"])  # see triton_kernel._WARPS
def sums_kernel(
    dy_ptr,  # (M, C)
    x_ptr,  # (M, C)
    mask_ptr,  # (M, B), uint8
    mean_ptr,  # (C,), float32
    rstd_ptr,  # (C,), float32
    parts_ptr,  # (R, 2, C), float32: sums of g and of g (x - mean) rstd
    M,
    C,
    B,
    RELU: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Compute the gradients of bias and weight from one group of rows."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    byte = tl.program_id(0) * (CHANNELS // 8) + tl.arange(0, CHANNELS // 8)
    mean = tl.load(mean_ptr + channel, mask=channel < C, other=0)
    total = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
    projected = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
    for step in tl.range(
        tl.program_id(1), tl.cdiv(M, DEPTH * ROWS), tl.num_programs(1), num_stages=STAGES
    ):
        x = _step(x_ptr, step, M, channel, C, DEPTH, ROWS).to(tl.float32)
        g = _step(dy_ptr, step, M, channel, C, DEPTH, ROWS).to(tl.float32)
        if RELU:
            g = _passed(g, _step(mask_ptr, step, M, byte, B, DEPTH, ROWS), DEPTH, ROWS, CHANNELS)
        total += tl.sum(g, 0)
        projected += tl.sum(g * (x - mean[None, None, :]), 0)
    rstd = tl.load(rstd_ptr + channel, mask=channel < C, other=0)
    part = parts_ptr + tl.program_id(1) * 2 * C + channel
    tl.store(part, tl.sum(total, 0), mask=channel < C)
    tl.store(part + C, tl.sum(projected, 0) * rstd, mask=channel < C)


@triton.jit(do_not_specialize=["B"])  # see triton_kernel._WARPS
def gradient_kernel(
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
    """Compute the gradients of x and of the residual in one tile."""
    first, piece = _backwards(M, C, ROWS, CHANNELS)
    channel = piece * CHANNELS + tl.arange(0, CHANNELS)
    byte = piece * (CHANNELS // 8) + tl.arange(0, CHANNELS // 8)
    offsets, inside = _tile(first, M - first, channel, C, 1, ROWS)
    x = tl.load(x_ptr + offsets, mask=inside, other=0)
    g = tl.load(dy_ptr + offsets, mask=inside, other=0).to(tl.float32)
    if RELU:
        where, there = _tile(first, M - first, byte, B, 1, ROWS)
        g = _passed(g, tl.load(mask_ptr + where, mask=there, other=0), 1, ROWS, CHANNELS)
    slope = tl.load(slope_ptr + channel, mask=channel < C, other=0)
    bend = tl.load(bend_ptr + channel, mask=channel < C, other=0)
    offset = tl.load(offset_ptr + channel, mask=channel < C, other=0)
    dx = slope[None, None, :] * g + (bend[None, None, :] * x.to(tl.float32) + offset[None, None, :])
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    if RESIDUAL:
        tl.store(dresidual_ptr + offsets, g.to(dresidual_ptr.dtype.element_ty), mask=inside)
