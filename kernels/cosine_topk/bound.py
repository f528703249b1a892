"""Upper bounds of all similarities by one narrow matrix product, and why they hold.

With c the mean row and P a matrix of r almost orthonormal columns that span most of what the rows
differ in, let u = x - c, u1 = P^T u its coordinates and u2 = u - P u1 what they leave out. Then

    q.b  =  c.q - c.c  +  c.b  +  (q - c).(b - c)        and, with the u of q called s, of b t,
    s.t  =  s1.t1 + s2.t2 + (cross terms that are 0 if P is orthonormal)
         <= s1.t1 + |s2| |t2| + ...                      (Cauchy and Schwarz)

so (s1, |s2|, 1) . (t1, |t2|, c.b) + c.q - c.c bounds the similarity: r + 2 dimensions instead of
D. Features of a network lie near a space of few dimensions, which makes |s2| |t2| small. Nothing
is assumed of that: where it is not so, the bound is the float32 product of whole rows.

Rounding is bounded as well. A float32 sum of n products, in whatever order, is off by at most
g(n) |a| |b| with g(n) = n u / (1 - n u), u = 2^-24. All such terms go into one slack a query:

* P is orthonormal up to h = |P^T P - 1|, computed in float64, in the Frobenius norm;
* coordinates are summed in pieces of 256 dimensions, so they are off by e |u| at most,
  e = g(256 + D / 256 + 1) |P|, which enters |u2|^2 = |u|^2 - |u1|^2 + 2 e |u| |u1| + h |u1|^2
  and both cross terms, (e |s| + h |s1|) |t1| and (e |t| + h |t1|) |s1|;
* the narrow product is off by g(r + 2) of the lengths of its rows;
* u, c.b and the final similarity are rounded once each.

Shapes: m queries, b bank rows, D dimensions, r coordinates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

_UNIT = 2.0**-24  # of float32
_PIECE = 256  # dimensions of a float32 sum
_SAMPLE = 2048  # rows that the space is fitted to
_FEWEST = (1024, 4096)  # queries and bank rows for which a fit pays
_PASSES = 3
_MOST = 512  # coordinates
_STEP = 32
_LEFT_OUT = 0.02  # share of the squared length that coordinates may leave out
_WORTH = 4  # times fewer dimensions than D, or it is not worth the trouble
_ROWS = 4096  # rows at a time: partial results stay in the cache


class Factors(NamedTuple):
    """left @ right.T + slack[:, None] is at least every similarity, and what it rounds to.

    Attributes:
        left: of shape (m, r + 2), or the queries; float32.
        right: of shape (b, r + 2), or the bank; float32.
        slack: of shape (m,), float64.
    """

    left: torch.Tensor
    right: torch.Tensor
    slack: torch.Tensor


def bound_factors(queries: torch.Tensor, bank: torch.Tensor) -> Factors:
    """Factors of upper bounds, narrow where that pays.

    Args:
        queries: of shape (m, D), float32.
        bank: of shape (b, D), float32.
    """
    (m, dims), b = queries.shape, len(bank)
    small = m < _FEWEST[0] or b < _FEWEST[1] or dims < _WORTH * _STEP
    space = None if small else fit_space(bank)
    if space is not None:
        return narrow_factors(queries, bank, *space)
    return Factors(queries, bank, whole_slack(queries, bank))


def whole_slack(queries: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """What a similarity may be above the float32 product of whole rows, of shape (m,), float64."""
    error = _sum_error(queries.shape[1]) + 3 * _UNIT
    return error * _lengths(queries) * _lengths(bank).max()


def fit_space(bank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean c (D,) and columns P (D, r) of the bank; None where r would be too large to pay.

    Subspace iteration on the covariance of evenly spread rows. How well it converges decides how
    tight bounds are, not whether they hold.
    """
    dims = bank.shape[1]
    rows = bank[torch.linspace(0, len(bank) - 1, _SAMPLE, device=bank.device).long()]
    centre = rows.mean(dim=0)
    rows = rows - centre
    total = float(rows.square().sum())
    if total == 0.0:
        return None
    width = min(_MOST, dims // _WORTH)
    # Drawn from a fixed seed: the same space, hence the same work, in every run.
    basis = torch.randn(dims, width, generator=torch.Generator().manual_seed(0)).to(bank.device)
    for _ in range(_PASSES):
        basis = torch.linalg.qr(rows.T @ (rows @ basis))[0]
    coordinates = rows @ basis
    values, vectors = torch.linalg.eigh(coordinates.T @ coordinates)
    left_out = 1 - values.flip(0).cumsum(0) / total
    enough = int((left_out > _LEFT_OUT).sum()) + 1
    if enough > width:
        return None
    width = min(width, -(-enough // _STEP) * _STEP)
    return centre, (basis @ vectors.flip(1)[:, :width]).contiguous()


def narrow_factors(
    queries: torch.Tensor, bank: torch.Tensor, centre: torch.Tensor, space: torch.Tensor
) -> Factors:
    """Factors with any centre (D,) and any space (D, r); see above."""
    dims, width = space.shape
    gram = space.double().T @ space.double()
    h = float((gram - torch.eye(width, device=gram.device)).norm())
    e = _sum_error(_PIECE + dims // _PIECE + 1) * float(space.double().norm())
    s1, s, ones, offset = _coordinates(queries, centre, space, e, h)
    t1, t, left_out, shift = _coordinates(bank, centre, space, e, h)
    middle = shift.mean()
    shift -= middle
    left = torch.cat([s1, ones[:, None].float(), torch.ones_like(s1[:, :1])], dim=1)
    right = torch.cat([t1, left_out[:, None].float(), shift[:, None].float()], dim=1)
    # |s1| <= (1 + e + h) |s|, and so on: lengths of whole rows serve in all terms of rounding.
    length = (1 + e + h) ** 2 * s * t.max()
    spread = float(shift.abs().max())
    rounding = _sum_error(width + 2) * (2 * length + spread) + _UNIT * spread
    final = 3 * _UNIT * _lengths(queries) * _lengths(bank).max()
    slack = (3 * h + 2 * e + 4 * _UNIT) * length + rounding + final
    square = float(centre.double().square().sum())
    return Factors(left, right, slack + offset + middle - square)


def _coordinates(
    rows: torch.Tensor, centre: torch.Tensor, space: torch.Tensor, e: float, h: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of x: u1 (n, r) float32; |u|, a bound of |u2|, and c.x, each (n,) float64."""
    u1 = rows.new_zeros(len(rows), space.shape[1])
    lengths, products = rows.new_empty(2, len(rows), dtype=torch.float64)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        u = rows[part] - centre
        for at in range(0, rows.shape[1], _PIECE):
            u1[part] += u[:, at : at + _PIECE] @ space[at : at + _PIECE]
        lengths[part] = _lengths(u)
        products[part] = rows[part].double() @ centre.double()
    inner = _lengths(u1)
    squares = lengths.square() - inner.square() + 2 * e * lengths * inner + h * inner.square()
    left_out = squares.clamp_(min=0).sqrt_() * (1 + 2 * _UNIT)  # still a bound as float32
    return u1, lengths, left_out, products


def _lengths(rows: torch.Tensor) -> torch.Tensor:
    lengths: torch.Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return lengths


def _sum_error(terms: int) -> float:
    """g(n), for rows of any length."""
    return terms * _UNIT / (1 - terms * _UNIT)
