"""Upper bounds of all similarities by one narrow matrix product, and why they hold.

With c the mean row and P a matrix of r almost orthonormal columns that span most of what the rows
differ in, let u = x - c, u1 = P^T u its coordinates and u2 = u - P u1 what they leave out. Then,
the u of q called s and that of b called t,

    q.b  =  c.c + c.s + c.t + s.t   and
    s.t  =  s1.t1 + s2.t2 + (cross terms that are 0 if P is orthonormal)
         <= s1.t1 + |s2| |t2| + ...                      (Cauchy and Schwarz)

so (s1, |s2|, 1) . (t1, |t2|, c.t) + c.s + c.c bounds the similarity: r + 2 dimensions instead of
D. Features of a network lie near a space of few dimensions, which makes |s2| |t2| small. Nothing
is assumed of that: where it is not so, the bound is the float32 product of whole rows.

Rounding is bounded as well. A float32 sum of n products, in whatever order, is off by at most
g(n) |a| |b| with g(n) = n u / (1 - n u), u = 2^-24. All such terms go into one slack a query:

* P is orthonormal up to h = |P^T P - 1|, computed in float64, in the Frobenius norm;
* coordinates are summed in pieces of 256 dimensions, so they are off by e |u| at most,
  e = g(256 + D / 256 + 1) |P|, which enters |u2|^2 <= |u|^2 - |u1|^2 + 2 e |u| |u1| + h |u1|^2
  and both cross terms, (e |s| + h |s1|) |t1| and (e |t| + h |t1|) |s1|; c.u likewise;
* the narrow product is off by g(r + 2) of the lengths of its rows;
* u and the final similarity are rounded once each; lengths are taken too long by g(D).

Shapes: m queries, b bank rows, D dimensions, r coordinates, k neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

_UNIT = 2.0**-24  # of float32
_PIECE = 256  # dimensions of a float32 sum
_SAMPLE = 8192  # rows that the space is found with
_HELD_OUT = 4  # every fourth of them tells how many coordinates are enough
_PROBES = 64  # of these, that stand for queries
_PASSES = 2
_WIDTHS = (32, 64, 128, 256, 384, 512, 768)  # coordinates to choose from
_WORK = 1e11  # multiplications, fewer of which are done before a space is found
_GATHERED = 40  # times dearer a dimension of a single row is than one in a matrix product
_ROWS = 1024  # rows at a time: partial results stay in the cache


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


def bound_factors(queries: torch.Tensor, bank: torch.Tensor, k: int) -> Factors:
    """Factors of upper bounds, narrow where that pays.

    Args:
        queries: of shape (m, D), float32.
        bank: of shape (b, D), float32.
        k: neighbours that are looked for.
    """
    space = fit_space(bank, k, len(queries)) if _pays(queries, bank) else None
    if space is not None:
        return narrow_factors(queries, bank, *space)
    return Factors(queries, bank, whole_slack(queries, bank))


def whole_slack(queries: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """What a similarity may be above the float32 product of whole rows, of shape (m,), float64."""
    error = _sum_error(queries.shape[1]) + 3 * _UNIT
    return error * _lengths(queries) * _lengths(bank).max()


def _pays(queries: torch.Tensor, bank: torch.Tensor) -> bool:
    work = len(queries) * bank.numel()
    return work >= _WORK and len(bank) >= _SAMPLE and bank.shape[1] > 2 * _WIDTHS[0]


def fit_space(bank: torch.Tensor, k: int, queries: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean c (D,) and columns P (D, r) of the bank; None where whole rows cost less.

    Subspace iteration on the covariance of evenly spread rows. How well it converges decides how
    tight bounds are, not whether they hold.

    Args:
        bank: of shape (b, D), float32.
        k: neighbours that are looked for.
        queries: their number.
    """
    dims = bank.shape[1]
    spread = torch.linspace(0, len(bank) - 1, min(_SAMPLE, len(bank)), device=bank.device).long()
    held_out = torch.arange(len(spread), device=bank.device) % _HELD_OUT == 0
    rows = bank[spread[~held_out]]
    centre = rows.mean(dim=0)
    rows -= centre
    if not rows.any():
        return None
    width = min(_WIDTHS[-1], dims // 2)
    # Drawn from a fixed seed: the same space, hence the same work, in every run.
    basis = torch.randn(dims, width, generator=torch.Generator().manual_seed(0)).to(bank.device)
    for _ in range(_PASSES):
        basis = torch.linalg.qr(rows.T @ (rows @ basis))[0]
    coordinates = rows @ basis
    basis = basis @ torch.linalg.eigh(coordinates.T @ coordinates)[1].flip(1)
    # Rows that the space was fitted to are nearer to it than others.
    others = bank[spread[held_out]] - centre
    best = _cheapest(others, others @ centre, others @ basis, k, len(bank), queries)
    return None if best is None else (centre, basis[:, :best].contiguous())


def _cheapest(
    rows: torch.Tensor,
    shift: torch.Tensor,
    coordinates: torch.Tensor,
    k: int,
    bank: int,
    queries: int,
) -> int | None:
    """The number of coordinates for which product and single rows cost least; None: all D.

    Some of the sampled rows stand for queries. How many of the others their bounds let through
    says how many rows of the bank will have to be looked at.
    """
    dims = rows.shape[1]
    probes = torch.arange(0, len(rows), -(-len(rows) // _PROBES), device=rows.device)
    exact = rows[probes] @ rows.T + shift
    rank = 1 + max(1, round(k * len(rows) / bank))  # the first one is the probe itself
    if rank > len(rows):
        return None
    kth = exact.topk(rank, dim=1).values[:, -1:]
    best, least = None, (bank + _GATHERED * k) * dims
    for width in _WIDTHS:
        if width > coordinates.shape[1]:
            break
        part = coordinates[:, :width]
        left_out = (rows.square().sum(1) - part.square().sum(1)).clamp(min=0).sqrt()
        bounds = part[probes] @ part.T + left_out[probes, None] * left_out + shift
        through = float((bounds >= kth).sum(1).double().mean()) - 1
        looked_at = max(k, through * bank / len(rows))
        project = dims * width * (bank / queries + 1)
        cost = int(bank * width + _GATHERED * looked_at * dims + project)
        if cost < least:
            best, least = width, cost
    return best


def narrow_factors(
    queries: torch.Tensor, bank: torch.Tensor, centre: torch.Tensor, space: torch.Tensor
) -> Factors:
    """Factors with any centre (D,) and any space (D, r); see above."""
    dims, width = space.shape
    gram = space.double().T @ space.double()
    h = float((gram - torch.eye(width, device=gram.device)).norm())
    piece = _sum_error(_PIECE + dims // _PIECE + 1)
    e = piece * float(space.double().norm())
    # |u2| comes into the column of zeros.
    columns = torch.cat([space, torch.zeros_like(centre)[:, None], centre[:, None]], dim=1)
    left, s = _coordinates(queries, centre, columns, e, h)
    right, t = _coordinates(bank, centre, columns, e, h)
    offset = left[:, -1].double()
    left[:, -1] = 1
    # |s1| <= (1 + e + h) |s|, and so on: lengths of whole rows serve in all terms of rounding.
    longest = t.max()
    length = (1 + e + h) ** 2 * s * longest
    product = _sum_error(width + 2) * (2 * length + float(right[:, -1].abs().max()))
    along = (piece + 2 * _UNIT) * float(centre.double().norm()) * (s + longest)
    final = 3 * _UNIT * _lengths(queries) * _lengths(bank).max()
    slack = (3 * h + 2 * e + 4 * _UNIT) * length + product + along + final
    return Factors(left, right, slack + offset + float(centre.double().square().sum()))


def _coordinates(
    rows: torch.Tensor, centre: torch.Tensor, columns: torch.Tensor, e: float, h: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of x: (u1, a bound of |u2|, c.u), of shape (n, r + 2), float32; |u|, (n,) float64."""
    result = rows.new_zeros(len(rows), columns.shape[1])
    lengths = rows.new_empty(len(rows), dtype=torch.float64)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        u = rows[part] - centre
        for at in range(0, rows.shape[1], _PIECE):
            result[part] += u[:, at : at + _PIECE] @ columns[at : at + _PIECE]
        lengths[part] = _lengths(u)
    inner = _lengths(result[:, :-2])
    shorter = inner * (1 - 2 * _sum_error(columns.shape[1]))
    squares = lengths.square() - shorter.square() + 2 * e * lengths * inner + h * inner.square()
    # Still a bound as float32.
    result[:, -2] = (squares.clamp_(min=0).sqrt_() * (1 + 2 * _UNIT)).float()
    return result, lengths


def _lengths(rows: torch.Tensor) -> torch.Tensor:
    """Of shape (n,), float64, never too short."""
    lengths: torch.Tensor = torch.linalg.vector_norm(rows, dim=1).double()
    return lengths * (1 + _sum_error(rows.shape[1] + 2))


def _sum_error(terms: int) -> float:
    """g(n), for rows of any length."""
    return terms * _UNIT / (1 - terms * _UNIT)
