"""Find the k nearest rows by float32 products, and prove them with float64 sums of the best few.

A float32 sum of n products, in any order, is off by at most g(n) |a| |b| with
g(n) = n u / (1 - n u), u = 2^-24. So a matrix product orders all rows up to a known slack. For each
query a few more rows than k are kept, and their similarities are computed by the reference. If
the lowest product kept, plus the slack, is below the k-th best similarity, no other row can be
among the nearest. Otherwise (ties, or rows too close to each other for float32) the query is
searched again with more rows kept, and finally with all of them, which is the reference.

Shapes: m queries, b bank rows, D dimensions, k neighbours, c rows kept for each query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Function of queries (m, D), a bank (b, D) and rows (m, c): similarities (m, c), float32."""

_MARGIN = 32  # rows kept in addition to k
_GROWTH = 4  # factor on the rows kept in the next search
_UNIT = 2.0**-24  # unit roundoff of float32
_PRODUCT_BYTES = 2**27  # of products at a time
_KEPT = 2**24  # rows kept at a time, over all queries
_TILE = 5120  # bank rows per matrix product: its result is still in the cache when it is read
_GROUPS = 10  # columns per group; the best of each group decides which groups are searched


def cosine_topk(
    queries: torch.Tensor,
    bank: torch.Tensor,
    first_row: int,
    similarities: torch.Tensor,
    indices: torch.Tensor,
    score: Score,
) -> int:
    """Compute ``reference.cosine_topk``; tensors must be contiguous and on one device.

    Returns:
        Number of similarities computed in float64.
    """
    kept = min(len(bank), similarities.shape[1] + _MARGIN)
    pending = torch.arange(len(queries), device=queries.device)
    scored = 0
    with _full_float32(queries.device.type):
        slack = product_slack(queries, bank)
        while len(pending):
            unsure = []
            for part in pending.split(max(1, _KEPT // kept)):
                asked = queries[part]
                lowest, rows = _highest_products(asked, bank, kept)
                exact = score(asked, bank, rows)
                scored += rows.numel()
                values, names = _merged(similarities[part], indices[part], exact, rows + first_row)
                sure = lowest.double() + slack[part] < values[:, -1].double()
                if kept == len(bank):
                    sure.fill_(True)
                similarities[part[sure]] = values[sure]
                indices[part[sure]] = names[sure]
                unsure.append(part[~sure])
            pending = torch.cat(unsure)
            kept = min(len(bank), _GROWTH * kept)
    return scored


def product_slack(queries: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """Return the most by which a similarity may exceed its float32 product, (m,), float64."""
    error = _sum_error(queries.shape[1]) + 3 * _UNIT  # the similarity is rounded as well
    return error * _lengths(queries) * _lengths(bank).max()


def gathered_products(
    queries: torch.Tensor, bank: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Compute similarities in plain torch, on any device (a ``Score``)."""
    products = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    step = max(1, _PRODUCT_BYTES // (8 * rows.shape[1] * bank.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        asked = queries[part].double()[:, :, None]
        products[part] = torch.bmm(bank[rows[part]].double(), asked)[:, :, 0].float()
    return products


def compiled_products(
    queries: torch.Tensor, bank: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Compute similarities with the extension, in host memory (a ``Score``)."""
    from fastrot.kernels import _native

    products = torch.empty(rows.shape)
    _native.scalar_products(queries, bank, rows, products, torch.get_num_threads())
    return products


def _highest_products(
    queries: torch.Tensor, bank: torch.Tensor, kept: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lowest product kept (m,), float32, and the rows kept (m, c), increasing."""
    rows = torch.empty(len(queries), kept, dtype=torch.int64, device=queries.device)
    lowest = queries.new_empty(len(queries))
    step = max(1, _PRODUCT_BYTES // (4 * len(bank)))
    buffer = queries.new_empty(min(step, len(queries)), len(bank))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        products = buffer[: len(queries[part])]
        for column in range(0, len(bank), _TILE):
            tile = slice(column, column + _TILE)
            torch.mm(queries[part], bank[tile].T, out=products[:, tile])
        values, best = _highest(products, kept)
        lowest[part] = values.amin(dim=1)
        rows[part] = best.sort(dim=1).values
    return lowest, rows


def _highest(products: torch.Tensor, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what ``topk`` returns, in any order, but faster for many columns.

    The best value of each group of columns is found first: the ``kept`` highest values are in the
    ``kept`` groups with the highest best values.
    """
    width = products.shape[1] // _GROUPS
    if width < 2 * kept:
        values, columns = products.topk(kept, dim=1, sorted=False)
        return values, columns
    grouped = products[:, : _GROUPS * width].unflatten(1, (_GROUPS, width))
    groups = grouped.amax(dim=1).topk(kept, dim=1, sorted=False).indices
    first = width * torch.arange(_GROUPS, device=products.device)
    rest = torch.arange(_GROUPS * width, products.shape[1], device=products.device)
    columns = torch.cat(
        [(groups[:, None, :] + first[:, None]).flatten(1), rest.expand(len(products), -1)], dim=1
    )
    values, places = products.gather(1, columns).topk(kept, dim=1, sorted=False)
    return values, columns.gather(1, places)


def _merged(
    similarities: torch.Tensor, indices: torch.Tensor, exact: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest of the rows so far and the new ones, whose indices follow and increase."""
    k = similarities.shape[1]
    # A stable sort: among equal similarities the lower row wins.
    values, order = torch.cat([similarities, exact], dim=1).sort(
        dim=1, descending=True, stable=True
    )
    return values[:, :k], torch.cat([indices, rows], dim=1).gather(1, order[:, :k])


@contextmanager
def _full_float32(device: str) -> Iterator[None]:
    """Multiply in full float32, though training may have allowed less: the slack relies on it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _lengths(rows: torch.Tensor) -> torch.Tensor:
    """Return an upper bound on the length of each row, (n,), float64."""
    lengths: torch.Tensor = torch.linalg.vector_norm(rows, dim=1).double()
    return lengths * (1 + _sum_error(rows.shape[1] + 2))


def _sum_error(terms: int) -> float:
    """Return g(n) for n terms."""
    return terms * _UNIT / (1 - terms * _UNIT)
