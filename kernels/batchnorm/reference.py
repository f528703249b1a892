"""The definition of the fused batch normalisation, in plain torch.

A layer is y = relu(gamma (x - mean) / sqrt(var + eps) + beta + residual), where ReLU and residual
may be missing (Ioffe and Szegedy, 2015; the variance is the biased one). All arithmetic is in
float32, whatever the dtype of x, and every result is rounded once.

Rows are the N H W positions of a channels-last batch, so a batch is a matrix. A mask has one bit
an element, 1 where ReLU let it pass: bit k of byte j is channel 8 j + k.

Shapes: M rows, C channels, B = ceil(C / 8) bytes.
"""

from __future__ import annotations

import torch


def moments(x: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Mean, and sum of squared deviations from it, of every channel.

    Args:
        x: of shape (M, C), float32, float16 or bfloat16, M >= 1.
        mean: of shape (C,), float32; overwritten.
        deviation: likewise.
    """
    wide = x.float()
    mean.copy_(wide.mean(0))
    deviation.copy_((wide - mean).square().sum(0))


def normalise(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    residual: torch.Tensor | None,
    relu: bool,
    y: torch.Tensor,
    mask: torch.Tensor | None,
) -> None:
    """Scale x + shift + residual, then ReLU.

    Args:
        x: of shape (M, C).
        scale: of shape (C,), float32.
        shift: likewise.
        residual: of shape (M, C) and the dtype of x, or None.
        relu: whether ReLU is applied.
        y: of shape (M, C) and the dtype of x; overwritten.
        mask: of shape (M, B), uint8, overwritten by what ReLU lets pass; None: nobody asks.
    """
    wide = x.float() * scale + shift
    if residual is not None:
        wide = wide + residual.float()
    if mask is not None:
        mask.copy_(pack(wide > 0))
    y.copy_(wide.clamp(min=0) if relu else wide)


def gradient_sums(
    dy: torch.Tensor,
    x: torch.Tensor,
    mask: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    total: torch.Tensor,
    projected: torch.Tensor,
) -> None:
    """Sums over the rows of g and of g (x - mean) rstd, where g is dy where ReLU let it pass.

    They are the gradients of beta and gamma, and all that a row's gradient needs of the others.

    Args:
        dy: of shape (M, C), the dtype of x.
        x: of shape (M, C).
        mask: of shape (M, B), uint8; None: no ReLU.
        mean: of shape (C,), float32.
        rstd: 1 / sqrt(var + eps), likewise.
        total: the first sum, of shape (C,), float32; overwritten.
        projected: the second one, likewise.
    """
    g = _passed(dy, mask)
    total.copy_(g.sum(0))
    projected.copy_((g * ((x.float() - mean) * rstd)).sum(0))


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
    """Dx = slope g + bend x + offset, and g itself, the gradient of the residual.

    With s = gamma rstd, and the means over all rows of ``gradient_sums``, t of g and p of the
    projection, dx = s (g - t - p (x - mean) rstd): slope s, bend -s p rstd, and offset
    s (p rstd mean - t).

    Args:
        dy: of shape (M, C), the dtype of x.
        x: of shape (M, C).
        mask: of shape (M, B), uint8; None: no ReLU.
        slope: of shape (C,), float32.
        bend: likewise.
        offset: likewise.
        dx: of shape (M, C), the dtype of x; overwritten.
        dresidual: likewise, or None.
    """
    g = _passed(dy, mask)
    dx.copy_(slope * g + (bend * x.float() + offset))
    if dresidual is not None:
        dresidual.copy_(g)


def pack(passed: torch.Tensor) -> torch.Tensor:
    """Bits of shape (M, B), uint8, of a bool matrix (M, C)."""
    rows, channels = passed.shape
    padded = passed.new_zeros(rows, -(-channels // 8) * 8)
    padded[:, :channels] = passed
    powers = 2 ** torch.arange(8, device=passed.device)
    return (padded.view(rows, -1, 8) * powers).sum(2).to(torch.uint8)


def unpack(mask: torch.Tensor, channels: int) -> torch.Tensor:
    """The bool matrix (M, C) of bits (M, B)."""
    bits = (mask[:, :, None] >> torch.arange(8, device=mask.device)) & 1
    return bits.flatten(1)[:, :channels].bool()


def _passed(dy: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    g = dy.float()
    return g if mask is None else torch.where(unpack(mask, g.shape[1]), g, 0)
