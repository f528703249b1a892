"""``cosine_topk`` in Triton: products of tiles that keep only what may be near enough.

The first kernel multiplies tiles of queries and rows in float32 and writes down the rows whose
product, plus what rounding may have taken, reaches a query's k-th best so far; similarities never
go to memory. The second one computes those of the rows written down in float64. The bank is taken
in pieces that grow fourfold, because after each of them fewer rows pass.

Shapes: m queries, b bank rows, D dimensions, k neighbours, C places for rows of a query.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrot.kernels.cosine_topk.bound import whole_slack

_QUERIES, _ROWS, _DEPTH = 64, 128, 32  # of a tile
_CANDIDATES, _WIDTH = 32, 64  # rows and dimensions of a float64 sum at a time
_LEAST_PLACES = 1024
_GROWTH = 4
_QUERY_BLOCK = 8192  # bounds the memory of places


@triton.jit
def _collect_kernel(
    queries_ptr,  # pointer to float32, shape (M, D)
    bank_ptr,  # pointer to float32, shape (B, D)
    floors_ptr,  # pointer to float32, shape (M,): products above it count
    counts_ptr,  # pointer to int32, shape (M,): rows that count
    rows_ptr,  # pointer to int32, shape (M, C): which, in no order
    M,
    B,
    D,
    C,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    query = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    query_at = query.to(tl.int64)[:, None] * D
    row_at = row.to(tl.int64)[None, :] * D
    product = tl.full((QUERIES, ROWS), 0.0, tl.float32)
    for start in range(0, D, DEPTH):
        d = start + tl.arange(0, DEPTH)
        q = tl.load(
            queries_ptr + query_at + d[None, :],
            mask=(query < M)[:, None] & (d < D)[None, :],
            other=0.0,
        )
        b = tl.load(
            bank_ptr + row_at + d[:, None], mask=(row < B)[None, :] & (d < D)[:, None], other=0.0
        )
        product = tl.dot(q, b, product, input_precision="ieee")  # the slack is float32's
    floor = tl.load(floors_ptr + query, mask=query < M, other=float("inf"))
    counts = (product > floor[:, None]) & (row < B)[None, :]
    # Few rows pass, so one atomic addition for each costs little.
    queries = tl.broadcast_to(query[:, None], (QUERIES, ROWS))
    place = tl.atomic_add(counts_ptr + queries, 1, mask=counts)
    tl.store(
        rows_ptr + query.to(tl.int64)[:, None] * C + place,
        tl.broadcast_to(row[None, :], (QUERIES, ROWS)),
        mask=counts & (place < C),
    )


@triton.jit
def _rescore_kernel(
    queries_ptr,  # pointer to float32, shape (M, D)
    bank_ptr,  # pointer to float32, shape (B, D)
    counts_ptr,  # pointer to int32, shape (M,)
    rows_ptr,  # pointer to int32, shape (M, C)
    similarities_ptr,  # pointer to float64, shape (M, C), written where there is a row
    D,
    C,
    CANDIDATES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    query = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * CANDIDATES + tl.arange(0, CANDIDATES)
    there = place < tl.load(counts_ptr + query)
    row = tl.load(rows_ptr + query * C + place, mask=there, other=0).to(tl.int64)
    total = tl.full((CANDIDATES, WIDTH), 0.0, tl.float64)
    for start in range(0, D, WIDTH):
        d = start + tl.arange(0, WIDTH)
        q = tl.load(queries_ptr + query * D + d, mask=d < D, other=0.0).to(tl.float64)
        b = tl.load(
            bank_ptr + row[:, None] * D + d[None, :],
            mask=there[:, None] & (d < D)[None, :],
            other=0.0,
        ).to(tl.float64)
        total += q[None, :] * b
    # tl.sum is this, but cannot be interpreted once triton is imported without its interpreter.
    total = tl.reduce(total, 1, tl.standard._sum_combine)
    tl.store(similarities_ptr + query * C + place, total, mask=there)


def cosine_topk(
    queries: torch.Tensor,
    bank: torch.Tensor,
    first_row: int,
    similarities: torch.Tensor,
    indices: torch.Tensor,
) -> None:
    """Merge as ``reference.cosine_topk`` does; tensors contiguous, on one GPU."""
    slack = whole_slack(queries, bank)
    for start in range(0, len(queries), _QUERY_BLOCK):
        part = slice(start, start + _QUERY_BLOCK)
        _merge(queries[part], bank, first_row, similarities[part], indices[part], slack[part])


def _merge(
    queries: torch.Tensor,
    bank: torch.Tensor,
    first_row: int,
    similarities: torch.Tensor,
    indices: torch.Tensor,
    slack: torch.Tensor,
) -> None:
    places = max(_LEAST_PLACES, 4 * similarities.shape[1])
    # Without k neighbours yet, all rows pass, and as many as there are places do no harm.
    size = len(bank) if bool((indices[:, -1] >= 0).all()) else places
    start = 0
    while start < len(bank):
        piece = bank[start : start + size]
        below = torch.full((), -torch.inf, device=bank.device)
        floors = (similarities[:, -1].double() - slack).float()
        floors = torch.nextafter(torch.nextafter(floors, below), below)  # rounded down, and below
        counts = torch.zeros(len(queries), dtype=torch.int32, device=bank.device)
        rows = counts.new_empty(len(queries), places)
        grid = (triton.cdiv(len(piece), _ROWS), triton.cdiv(len(queries), _QUERIES))
        _collect_kernel[grid](
            queries,
            piece,
            floors,
            counts,
            rows,
            len(queries),
            len(piece),
            queries.shape[1],
            places,
            QUERIES=_QUERIES,
            ROWS=_ROWS,
            DEPTH=_DEPTH,
        )
        most = int(counts.max())
        if most > places:  # too many pass; of a piece no larger than the places they never do
            size = max(places, len(piece) // 2)
            continue
        if most:
            _take(queries, piece, first_row + start, counts, rows, most, similarities, indices)
        start += len(piece)
        size = _GROWTH * len(piece)


def _take(
    queries: torch.Tensor,
    bank: torch.Tensor,
    first_row: int,
    counts: torch.Tensor,
    rows: torch.Tensor,
    most: int,
    similarities: torch.Tensor,
    indices: torch.Tensor,
) -> None:
    """Compute the similarities of the rows that passed, ``most`` a query, and merge them."""
    exact = torch.full(rows.shape, -torch.inf, dtype=torch.float64, device=rows.device)
    grid = (len(queries), triton.cdiv(most, _CANDIDATES))
    _rescore_kernel[grid](
        queries,
        bank,
        counts,
        rows,
        exact,
        queries.shape[1],
        rows.shape[1],
        CANDIDATES=_CANDIDATES,
        WIDTH=_WIDTH,
    )
    passed = torch.arange(most, device=rows.device) < counts[:, None]
    fresh = torch.where(passed, rows[:, :most].long() + first_row, -1)
    names, order = torch.cat([indices, fresh], dim=1).sort(dim=1)
    values = torch.cat([similarities, exact[:, :most].float()], dim=1).gather(1, order)
    # Sorted by index before, and stable: of equal similarities the lower index wins.
    ranked, order = values.sort(dim=1, descending=True, stable=True)
    k = similarities.shape[1]
    similarities.copy_(ranked[:, :k])
    indices.copy_(names.gather(1, order[:, :k]))
