"""``cosine_topk`` on the host: bounds by a matrix product of torch, the rest by the extension.

Shapes: m queries, b bank rows, D dimensions, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastrot.kernels import _native
from fastrot.kernels.cosine_topk.bound import bound_factors

_BLOCK_BYTES = 2**26  # of bounds at a time


def cosine_topk(
    queries: torch.Tensor,
    bank: torch.Tensor,
    first_row: int,
    similarities: torch.Tensor,
    indices: torch.Tensor,
) -> int:
    """Merge as ``reference.cosine_topk`` does; tensors contiguous, in host memory.

    Returns:
        How many similarities were computed in full.
    """
    with _full_float32():
        return _merge(queries, bank, first_row, similarities, indices)


def _merge(
    queries: torch.Tensor,
    bank: torch.Tensor,
    first_row: int,
    similarities: torch.Tensor,
    indices: torch.Tensor,
) -> int:
    left, right, slack = bound_factors(queries, bank, similarities.shape[1])
    columns = right.T
    step = max(1, _BLOCK_BYTES // (4 * len(bank)))
    buffer = torch.empty(min(step, len(queries)), len(bank))
    rescored = 0
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        bounds = buffer[: len(queries[part])]
        torch.mm(left[part], columns, out=bounds)
        rescored += _native.cosine_topk(
            bounds,
            slack[part],
            queries[part],
            bank,
            first_row,
            similarities[part],
            indices[part],
            torch.get_num_threads(),
        )
    return rescored


@contextmanager
def _full_float32() -> Iterator[None]:
    """Products in float32, though training may have allowed bfloat16: bounds count on it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
