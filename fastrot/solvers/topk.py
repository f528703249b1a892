"""Exact nearest neighbours by cosine similarity over arrays and memory maps, block by block.

Shapes: m queries, n bank rows, D dimensions, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.kernels.cosine_topk.op import cosine_topk

_BLOCK_BYTES = 2**29  # per block of the bank as float32
_LEAST_LENGTH = 1e-12


def nearest_rows(
    queries: NDArray[Any],
    bank: NDArray[Any],
    k: int,
    *,
    device: str | torch.device = "cpu",
    block_bytes: int = _BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the k most similar rows of the bank for each query, most similar first.

    Rows are divided by their length; a row of zeros has similarity 0 to every other. Equal
    similarities rank the lower row first, so the result depends neither on the blocks nor on the
    device (see ``kernels.cosine_topk``).

    Args:
        queries: of shape (m, D), any float type.
        bank: of shape (n, D), any float type; a memory map is read once, in its order.
        k: number of neighbours, from 1 to n.
        device: device that computes.
        block_bytes: bytes of bank rows in memory at a time, as float32.
        progress: called with the number of bank rows searched so far, and n.

    Returns:
        Similarities of shape (m, k), float32, and row indices of shape (m, k), int64.

    Raises:
        ValueError: shapes do not fit, k is out of range, or a value is not finite.

    Example:
        >>> nearest_rows(np.array([[3.0, 4.0]]), np.array([[1.0, 0.0], [0.0, 2.0]]), 1)
        (array([[0.8]], dtype=float32), array([[1]]))
    """
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"queries of shape {queries.shape} and bank of shape {bank.shape} must be (m, D) and "
            "(n, D)"
        )
    if not 1 <= k <= len(bank):
        raise ValueError(f"k={k} must be from 1 to {len(bank)}, the number of rows in the bank")
    asked = unit_rows(queries, device)
    best = None
    step = max(1, block_bytes // (4 * max(1, bank.shape[1])))
    for start in range(0, len(bank), step):
        rows = unit_rows(bank[start : start + step], device)
        best = cosine_topk(asked, rows, k, first_row=start, best=best)
        if progress is not None:
            progress(start + len(rows), len(bank))
    assert best is not None
    return best[0].cpu().numpy(), best[1].cpu().numpy()


def unit_rows(rows: NDArray[Any], device: str | torch.device = "cpu") -> torch.Tensor:
    """Return rows divided by their length, of shape (n, D), float32; a row of zeros stays.

    Raises:
        ValueError: a value is not finite.
    """
    # A copy, because torch must not hold the memory behind a read-only map.
    values = torch.from_numpy(np.array(rows, dtype=np.float32)).to(device)
    # In float64, and rounded once: the length must not depend on the size of a block.
    lengths = torch.linalg.vector_norm(values, dim=1, keepdim=True, dtype=torch.float64).float()
    if not torch.isfinite(lengths).all():
        row = int((~torch.isfinite(lengths[:, 0])).nonzero()[0])
        raise ValueError(f"row {row} of {len(values)} has a value that is not finite")
    return values.div_(lengths.clamp_(min=_LEAST_LENGTH))
