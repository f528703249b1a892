"""The reference for ``cosine_topk``, in plain torch.

A similarity is the scalar product of two float32 rows, summed in float64 and rounded once to
float32. The error of the sum, about 1e-16, rarely changes that rounding, so all implementations
give the same numbers and agree on ties: copies of a row tie, and rows whose similarities differ in
float32 do not.

Shapes: m queries, b bank rows, D dimensions, k neighbours.
"""

from __future__ import annotations

import torch

_BLOCK_BYTES = 2**26  # of similarities at a time


def cosine_topk(
    queries: torch.Tensor,
    bank: torch.Tensor,
    first_row: int,
    similarities: torch.Tensor,
    indices: torch.Tensor,
) -> None:
    """Merge the rows of a bank into the nearest ones so far, on any device.

    Args:
        queries: of shape (m, D), float32, rows of unit length, or zero.
        bank: of shape (b, D), likewise.
        first_row: index of the bank's row 0; all indices so far are lower.
        similarities: of shape (m, k), float32, decreasing; overwritten.
        indices: of shape (m, k), int64; overwritten; -1 where there is no row yet.
    """
    k = similarities.shape[1]
    rows = torch.arange(first_row, first_row + len(bank), device=bank.device)
    columns = bank.double().T
    step = max(1, _BLOCK_BYTES // (8 * len(bank)))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        fresh = (queries[part].double() @ columns).float()
        candidates = torch.cat([similarities[part], fresh], dim=1)
        names = torch.cat([indices[part], rows.expand(len(fresh), -1)], dim=1)
        # A stable sort: among equal similarities the row that came first, the lower one, wins.
        ranked, order = candidates.sort(dim=1, descending=True, stable=True)
        similarities[part] = ranked[:, :k]
        indices[part] = names.gather(1, order[:, :k])
