"""``cosine_topk``: exact search for the k rows of a bank most similar to each query.

Shapes: m queries, b bank rows, D dimensions, k neighbours.
"""

from __future__ import annotations

import torch

from fastrot.kernels.cosine_topk.search import compiled_products, gathered_products
from fastrot.kernels.cosine_topk.search import cosine_topk as search
from fastrot.kernels.dispatch import choose


def cosine_topk(
    queries: torch.Tensor,
    bank: torch.Tensor,
    k: int,
    *,
    first_row: int = 0,
    best: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k bank rows with the greatest scalar product with each query, greatest first.

    The result is exact: every implementation gives the similarities of ``reference.cosine_topk``,
    and among equal ones the lower row comes first. To search a bank larger than memory, pass it
    block by block, in the order of its rows, each time with the result of the blocks before.

    Args:
        queries: of shape (m, D), float32, finite, of length at most 1 (up to rounding).
        bank: of shape (b, D), likewise, on the same device.
        k: number of neighbours, at least 1.
        first_row: index of the bank's row 0.
        best: result of the blocks before: similarities (m, k) and indices (m, k).

    Returns:
        Similarities of shape (m, k), float32, decreasing, and indices of shape (m, k), int64.
        Where fewer than k rows were seen: -inf and -1.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: shapes or devices do not fit.
        KernelUnavailableError: FASTROT_KERNELS forces an implementation that cannot run.

    Example:
        >>> bank = torch.eye(3)
        >>> cosine_topk(torch.tensor([[0.6, 0.0, 0.8]]), bank, 2)
        (tensor([[0.8000, 0.6000]]), tensor([[2, 0]]))
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    if best is None:
        best = (
            queries.new_full((len(queries), k), -torch.inf, dtype=torch.float32),
            queries.new_full((len(queries), k), -1, dtype=torch.int64),
        )
    elif best[0].shape[-1] != k:
        raise ValueError(f"best holds {best[0].shape[-1]} neighbours instead of k={k}")
    # The registered operation is for graphs; calling it loads torch's compiler, for seconds.
    run = _operation if torch.compiler.is_compiling() else _merge
    similarities, indices = run(queries, bank, best[0], best[1], first_row)
    return similarities, indices


def _merge(
    queries: torch.Tensor,
    bank: torch.Tensor,
    similarities: torch.Tensor,
    indices: torch.Tensor,
    first_row: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(queries, bank, similarities, indices, first_row)
    chosen = choose("scalar_products", queries.device.type).implementation
    score = compiled_products if chosen == "cpp" else gathered_products
    similarities = similarities.clone(memory_format=torch.contiguous_format)
    indices = indices.clone(memory_format=torch.contiguous_format)
    if len(queries) and len(bank):
        search(queries.contiguous(), bank.contiguous(), first_row, similarities, indices, score)
    return similarities, indices


_operation = torch.library.custom_op("fastrot::cosine_topk", _merge, mutates_args=())


@_operation.register_fake
def _(
    queries: torch.Tensor,
    bank: torch.Tensor,
    similarities: torch.Tensor,
    indices: torch.Tensor,
    first_row: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(queries, bank, similarities, indices, first_row)
    return similarities.new_empty(similarities.shape), indices.new_empty(indices.shape)


def _check(
    queries: torch.Tensor,
    bank: torch.Tensor,
    similarities: torch.Tensor,
    indices: torch.Tensor,
    first_row: int,
) -> None:
    """Check everything that a kernel relies on, before anything is allocated."""
    for name, tensor, dtype in (
        ("queries", queries, torch.float32),
        ("bank", bank, torch.float32),
        ("similarities", similarities, torch.float32),
        ("indices", indices, torch.int64),
    ):
        if tensor.dtype != dtype:
            raise TypeError(f"{name} is {tensor.dtype} but must be {dtype}; use {name}.to({dtype})")
        if tensor.ndim != 2:
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} must have two dimensions")
        if tensor.device != queries.device:
            raise ValueError(
                f"{name} is on {tensor.device} but must be where queries are, "
                f"{queries.device}; use {name}.to(queries.device)"
            )
    if queries.shape[1] != bank.shape[1] or queries.shape[1] == 0:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions and bank {bank.shape[1]}; both must have "
            "the same, at least one"
        )
    if similarities.shape != indices.shape or len(similarities) != len(queries):
        raise ValueError(
            f"similarities of shape {tuple(similarities.shape)} and indices of shape "
            f"{tuple(indices.shape)} must be (m, k) with m = {len(queries)}"
        )
    if similarities.shape[1] < 1:
        raise ValueError("similarities have no column; there must be one per neighbour")
    if first_row < 0:
        raise ValueError(f"first_row={first_row} must not be negative")
