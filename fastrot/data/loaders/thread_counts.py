"""The thread counts of torch and numba, kept from a library that sets both for the whole process.

FFCV sets them when it is imported and whenever a loader of it is built: to 1, and to the number
of that loader's workers. Whoever computes with torch afterwards has that many threads. So this
module, which others import before FFCV, does not import it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch


@contextmanager
def thread_counts_kept() -> Iterator[None]:
    """Both counts are after the block what they were before it."""
    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    try:
        yield
    finally:
        numba.set_num_threads(numba_threads)
        torch.set_num_threads(torch_threads)  # last: over OpenMP numba's call sets torch's, too
