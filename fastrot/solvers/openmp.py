"""Settings of OpenMP that a library changes for the whole process, restored afterwards.

cyanure turns on dynamic teams in the loaded libgomp, which is torch's. On a busy machine libgomp
then makes a team smaller than MKL has planned for, and MKL's QR decomposition waits forever for the
missing thread, keeping a core busy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_info


@contextmanager
def openmp_kept() -> Iterator[None]:
    """Restore the thread counts and dynamic teams of every loaded OpenMP at the end."""
    libraries = [
        ctypes.CDLL(info["filepath"]) for info in threadpool_info() if info["user_api"] == "openmp"
    ]
    before = [(each.omp_get_dynamic(), each.omp_get_max_threads()) for each in libraries]
    try:
        yield
    finally:
        for each, (dynamic, threads) in zip(libraries, before, strict=True):
            each.omp_set_dynamic(dynamic)
            each.omp_set_num_threads(threads)
