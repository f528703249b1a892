"""Settings of OpenMP that a library changes for the whole process, put back after it.

cyanure turns on dynamic teams in whatever libgomp is loaded, which is torch's. On a busy machine
libgomp then makes a team smaller than MKL has planned for, and MKL's QR decomposition waits for
the missing thread for ever, on a full core.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_info


@contextmanager
def openmp_kept() -> Iterator[None]:
    """Leave with the thread counts and dynamic teams of every loaded OpenMP as they were."""
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
