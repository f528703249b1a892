# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton kernels that run between two passes and merge the results of all groups of rows.

Statistics are merged pairwise (Chan, Golub and LeVeque, 1983), so no square of a mean is ever
subtracted from a mean of squares; and in a fixed order, so the same inputs give the same bits.

Shapes: C channels, R groups of rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def merged(mean, deviation, count):
    """Merge moments of shape (rows, channels) over the rows."""
    total = tl.sum(count, 0)
    together = tl.sum(mean * count, 0) / tl.maximum(total, 1.0)
    apart = mean - together[None, :]
    return together, tl.sum(deviation + apart * apart * count, 0), total


@triton.jit
def _merged_parts(parts_ptr, channel, C, R, PARTS: tl.constexpr, CHANNELS: tl.constexpr):
    mean = tl.full((CHANNELS,), 0.0, tl.float32)
    deviation = tl.full((CHANNELS,), 0.0, tl.float32)
    count = tl.full((CHANNELS,), 0.0, tl.float32)
    for start in range(0, R, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < R)[:, None] & (channel < C)[None, :]
        pointer = parts_ptr + part[:, None] * 3 * C + channel[None, :]
        own_mean, own_deviation, fresh = merged(
            tl.load(pointer, mask=inside, other=0),
            tl.load(pointer + C, mask=inside, other=0),
            tl.load(pointer + 2 * C, mask=inside, other=0),
        )
        share = fresh / tl.maximum(count + fresh, 1.0)
        apart = own_mean - mean
        mean += apart * share
        deviation += own_deviation + apart * apart * (count * share)
        count += fresh
    return mean, deviation, count


@triton.jit
def merge_kernel(
    parts_ptr,  # (R, 3, C), float32
    merged_ptr,  # (3, C), float32
    C,
    R,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Merge the moments of all rows of this rank; needed only with a process group."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    mean, deviation, count = _merged_parts(parts_ptr, channel, C, R, PARTS, CHANNELS)
    tl.store(merged_ptr + channel, mean, mask=channel < C)
    tl.store(merged_ptr + C + channel, deviation, mask=channel < C)
    tl.store(merged_ptr + 2 * C + channel, count, mask=channel < C)


@triton.jit
def finish_kernel(
    parts_ptr,  # (R, 3, C), float32
    weight_ptr,  # (C,), float32
    bias_ptr,  # (C,), float32
    running_mean_ptr,  # (C,), float32
    running_var_ptr,  # (C,), float32
    statistics_ptr,  # (5, C), float32: mean, rstd, scale, shift, count
    momentum,
    eps,
    C,
    R,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Compute the statistics of a batch and update the running ones."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < C
    mean, deviation, count = _merged_parts(parts_ptr, channel, C, R, PARTS, CHANNELS)
    variance = deviation / count
    rstd = tl.rsqrt(variance + eps)
    scale = tl.load(weight_ptr + channel, mask=inside, other=0) * rstd
    shift = tl.load(bias_ptr + channel, mask=inside, other=0) - mean * scale
    tl.store(statistics_ptr + channel, mean, mask=inside)
    tl.store(statistics_ptr + C + channel, rstd, mask=inside)
    tl.store(statistics_ptr + 2 * C + channel, scale, mask=inside)
    tl.store(statistics_ptr + 3 * C + channel, shift, mask=inside)
    tl.store(statistics_ptr + 4 * C + channel, count, mask=inside)
    before = tl.load(running_mean_ptr + channel, mask=inside, other=0)
    tl.store(running_mean_ptr + channel, before + momentum * (mean - before), mask=inside)
    unbiased = variance * (count / (count - 1))
    before = tl.load(running_var_ptr + channel, mask=inside, other=0)
    tl.store(running_var_ptr + channel, before + momentum * (unbiased - before), mask=inside)


@triton.jit
def coefficients_kernel(
    parts_ptr,  # (R, 2, C), float32
    statistics_ptr,  # (5, C), float32
    total_ptr,  # (C,), float32
    projected_ptr,  # (C,), float32
    bent_ptr,  # (2, C), float32: bend, offset
    C,
    R,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Add up the sums of all groups of rows and compute the coefficients of the gradient."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.full((CHANNELS,), 0.0, tl.float32)
    projected = tl.full((CHANNELS,), 0.0, tl.float32)
    for start in range(0, R, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < R)[:, None] & (channel < C)[None, :]
        pointer = parts_ptr + part[:, None] * 2 * C + channel[None, :]
        total += tl.sum(tl.load(pointer, mask=inside, other=0), 0)
        projected += tl.sum(tl.load(pointer + C, mask=inside, other=0), 0)
    inside = channel < C
    mean = tl.load(statistics_ptr + channel, mask=inside, other=0)
    rstd = tl.load(statistics_ptr + C + channel, mask=inside, other=0)
    slope = tl.load(statistics_ptr + 2 * C + channel, mask=inside, other=0)
    count = tl.load(statistics_ptr + 4 * C + channel, mask=inside, other=1)
    bend = -slope * rstd * (projected / count)
    tl.store(total_ptr + channel, total, mask=inside)
    tl.store(projected_ptr + channel, projected, mask=inside)
    tl.store(bent_ptr + channel, bend, mask=inside)
    tl.store(bent_ptr + C + channel, -bend * mean - slope * (total / count), mask=inside)
