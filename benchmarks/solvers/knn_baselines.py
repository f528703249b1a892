"""The competitors of ``fastrot bench knn``: fastrot, faiss, scikit-learn and plain torch.

Each takes the same unit rows, float32 in memory, and starts from scratch: the time to build an
index, copy rows or fit a model counts.

Shapes: m queries, n bank rows, D dimensions, k neighbours.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.kernels.cosine_topk.op import cosine_topk

_TORCH_BLOCK = 512


class Found(NamedTuple):
    """Neighbours.

    Attributes:
        similarities: of shape (m, k), float32, decreasing.
        rows: of shape (m, k), int64.
    """

    similarities: NDArray[np.float32]
    rows: NDArray[np.int64]


Search = Callable[[torch.Tensor, torch.Tensor, int, int], Found]


def own(queries: torch.Tensor, bank: torch.Tensor, k: int, threads: int) -> Found:
    """Search with ``cosine_topk``, on torch's threads."""
    similarities, rows = cosine_topk(queries, bank, k)
    return Found(similarities.numpy(), rows.numpy())


def faiss(queries: torch.Tensor, bank: torch.Tensor, k: int, threads: int) -> Found:
    """Search with faiss-cpu's exact inner product index."""
    library: Any = importlib.import_module("faiss")
    library.omp_set_num_threads(threads)
    index = library.IndexFlatIP(bank.shape[1])
    index.add(bank.numpy())
    return Found(*index.search(queries.numpy(), k))


def sklearn(queries: torch.Tensor, bank: torch.Tensor, k: int, threads: int) -> Found:
    """Search with scikit-learn's brute force, whose distance is 1 - similarity."""
    from sklearn.neighbors import NearestNeighbors

    baseline = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine", n_jobs=1)
    distances, rows = baseline.fit(bank.numpy()).kneighbors(queries.numpy())
    return Found((1 - distances).astype(np.float32), rows)


def plain_torch(queries: torch.Tensor, bank: torch.Tensor, k: int, threads: int) -> Found:
    """Search by matrix product and ``torch.topk`` per block of queries, as DINO's script does."""
    columns = bank.T
    parts = [(part @ columns).topk(k, dim=1) for part in queries.split(_TORCH_BLOCK)]
    return Found(
        torch.cat([part.values for part in parts]).numpy(),
        torch.cat([part.indices for part in parts]).numpy(),
    )


SEARCHES: dict[str, Search] = {
    "fastrot": own,
    "faiss": faiss,
    "torch": plain_torch,
    "sklearn": sklearn,
}
"""Searches by name, fastrot's own first."""


def missing(name: str) -> str | None:
    """Return why a competitor cannot take part, or None if it can."""
    if name == "faiss" and find_spec("faiss") is None:
        return "the package faiss-cpu is not installed"
    return None
