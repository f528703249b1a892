"""Protects the thread counts of torch and numba from FFCV, which sets both for the whole process.

Importing FFCV sets them to 1, and building one of its loaders sets them to its number of workers,
for all later computations. This module is imported first, so it does not import FFCV itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch


@contextmanager
def thread_counts_kept() -> Iterator[None]:
    """Restore both counts after the block to what they were before it."""
    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    try:
        yield
    finally:
        numba.set_num_threads(numba_threads)
        torch.set_num_threads(
            torch_threads
        )  # last, because numba's call may set torch's via OpenMP
