"""The reference for the fused batch normalisation, in plain torch.

A layer is y = relu(gamma (x - mean) / sqrt(var + eps) + beta + residual), where ReLU and residual
are optional (Ioffe and Szegedy, 2015; the variance is the biased one). All arithmetic is in
float32, whatever the dtype of x, and every result is rounded once. For a float64 x, which no
kernel accepts, arithmetic, parameters and statistics are float64.

Rows are the N H W positions of a channels-last batch, so a batch is a matrix. A mask has one bit
per element, 1 where ReLU let it pass: bit k of byte j is channel 8 j + k.

Shapes: M rows, C channels, B = ceil(C / 8) bytes, R groups of rows.
"""

from __future__ import annotations

import torch


def moments(x: torch.Tensor) -> torch.Tensor:
    """Return each channel's mean, sum of squared deviations from it, and number of rows.

    Args:
        x: of shape (M, C), float32, float16 or bfloat16, M >= 1.

    Returns:
        Moments of R groups of rows, (R, 3, C), float32; here R = 1.
    """
    wide = _wide(x)
    mean = wide.mean(0)
    return torch.stack([mean, (wide - mean).square().sum(0), torch.full_like(mean, len(x))])[None]


def merge(parts: torch.Tensor) -> torch.Tensor:
    """Return the moments (3, C) of all rows from those of groups of rows (R, 3, C)."""
    means, deviations, counts = parts.unbind(1)
    count = counts.sum(0)
    mean = (means * (counts / count)).sum(0)
    deviation = (deviations + (means - mean).square() * counts).sum(0)
    return torch.stack([mean, deviation, count])


def finish(
    parts: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """Return all that ``normalise`` needs from the first pass; update the running statistics.

    Args:
        parts: moments, of shape (R, 3, C), float32.
        weight: gamma, of shape (C,), float32.
        bias: beta, likewise.
        running_mean: likewise; moved towards this batch's mean.
        running_var: likewise, towards the unbiased variance.
        momentum: weight of this batch in the running statistics.
        eps: added to the variance.

    Returns:
        Statistics (5, C), float32: mean, rstd = 1 / sqrt(var + eps), scale = gamma rstd,
        shift = beta - mean scale, count.
    """
    mean, deviation, count = merge(parts)
    variance = deviation / count
    rstd = torch.rsqrt(variance + eps)
    scale = weight * rstd
    running_mean.lerp_(mean, momentum)
    # The unbiased variance; the batch itself is normalised with the biased one.
    running_var.lerp_(variance * (count / (count - 1)), momentum)
    return torch.stack([mean, rstd, scale, bias - mean * scale, count])


def normalise(
    x: torch.Tensor,
    statistics: torch.Tensor,
    residual: torch.Tensor | None,
    relu: bool,
    y: torch.Tensor,
    mask: torch.Tensor | None,
) -> None:
    """Compute scale x + shift + residual, then ReLU.

    Args:
        x: of shape (M, C).
        statistics: from ``finish``.
        residual: of shape (M, C) and the dtype of x, or None.
        relu: whether ReLU is applied.
        y: of shape (M, C) and the dtype of x; overwritten.
        mask: of shape (M, B), uint8, overwritten by what ReLU lets pass; None: not needed.
    """
    _, _, scale, shift, _ = statistics
    wide = _wide(x) * scale + shift
    if residual is not None:
        wide = wide + _wide(residual)
    if mask is not None:
        mask.copy_(pack(wide > 0))
    y.copy_(wide.clamp(min=0) if relu else wide)


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
    """Apply ``normalise`` with the running statistics, which do not change; write no mask."""
    rstd = torch.rsqrt(running_var + eps)
    scale = weight * rstd
    shift = bias - running_mean * scale
    statistics = torch.stack([running_mean, rstd, scale, shift, torch.zeros_like(scale)])
    normalise(x, statistics, residual, relu, y, None)


def gradient_sums(
    dy: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None, statistics: torch.Tensor
) -> torch.Tensor:
    """Return the sums over rows of g and of g (x - mean) rstd; g is dy masked by ReLU.

    They are the gradients of beta and gamma, and all that a row's gradient needs from other rows.

    Args:
        dy: of shape (M, C), the dtype of x.
        x: of shape (M, C).
        mask: of shape (M, B), uint8; None: no ReLU.
        statistics: from ``finish``.

    Returns:
        Sums over R groups of rows, (R, 2, C), float32; here R = 1.
    """
    g, (mean, rstd, _, _, _) = _passed(dy, mask), statistics
    return torch.stack([g.sum(0), (g * ((_wide(x) - mean) * rstd)).sum(0)])[None]


def coefficients(
    parts: torch.Tensor, statistics: torch.Tensor, total: torch.Tensor, projected: torch.Tensor
) -> torch.Tensor:
    """Add up the sums of all groups of rows, and return the coefficients for ``gradient``.

    With s = gamma rstd, t the mean over all rows of g, and p that of g (x - mean) rstd,
    dx = s (g - t - p (x - mean) rstd): slope s, bend -s p rstd, and offset s (p rstd mean - t).

    Args:
        parts: from ``gradient_sums``.
        statistics: from ``finish``.
        total: sum of g, of shape (C,), float32; overwritten.
        projected: sum of g (x - mean) rstd, likewise.

    Returns:
        Bend and offset, (2, C), float32.
    """
    total.copy_(parts[:, 0].sum(0))
    projected.copy_(parts[:, 1].sum(0))
    mean, rstd, slope, _, count = statistics
    bend = -slope * rstd * (projected / count)
    return torch.stack([bend, -bend * mean - slope * (total / count)])


def gradient(
    dy: torch.Tensor,
    x: torch.Tensor,
    mask: torch.Tensor | None,
    statistics: torch.Tensor,
    bent: torch.Tensor,
    dx: torch.Tensor,
    dresidual: torch.Tensor | None,
) -> None:
    """Compute dx = slope g + bend x + offset, and g itself, the gradient of the residual.

    Args:
        dy: of shape (M, C), the dtype of x.
        x: of shape (M, C).
        mask: of shape (M, B), uint8; None: no ReLU.
        statistics: from ``finish``; scale is the slope.
        bent: bend and offset, from ``coefficients``.
        dx: of shape (M, C), the dtype of x; overwritten.
        dresidual: likewise, or None.
    """
    g = _passed(dy, mask)
    dx.copy_(statistics[2] * g + (bent[0] * _wide(x) + bent[1]))
    if dresidual is not None:
        dresidual.copy_(g)


def pack(passed: torch.Tensor) -> torch.Tensor:
    """Pack a bool matrix (M, C) into bits of shape (M, B), uint8."""
    rows, channels = passed.shape
    padded = passed.new_zeros(rows, -(-channels // 8) * 8)
    padded[:, :channels] = passed
    powers = 2 ** torch.arange(8, device=passed.device)
    return (padded.view(rows, -1, 8) * powers).sum(2).to(torch.uint8)


def unpack(mask: torch.Tensor, channels: int) -> torch.Tensor:
    """Unpack bits (M, B) into a bool matrix (M, C)."""
    bits = (mask[:, :, None] >> torch.arange(8, device=mask.device)) & 1
    return bits.flatten(1)[:, :channels].bool()


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _passed(dy: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    g = _wide(dy)
    return g if mask is None else torch.where(unpack(mask, g.shape[1]), g, 0)
