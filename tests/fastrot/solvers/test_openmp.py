"""What a library does to OpenMP does not outlast it."""

from __future__ import annotations

import ctypes

import pytest
import torch
from threadpoolctl import threadpool_info

from fastrot.solvers.openmp import openmp_kept
from fastrot.solvers.softmax_libraries import solve_with_cyanure


def libraries() -> list[ctypes.CDLL]:
    torch.ones(2).sum()  # torch's is loaded by now
    found = [i["filepath"] for i in threadpool_info() if i["user_api"] == "openmp"]
    assert any("libgomp" in path or "libomp" in path for path in found)
    return [ctypes.CDLL(path) for path in found]


def settings() -> list[tuple[int, int]]:
    return [(each.omp_get_dynamic(), each.omp_get_max_threads()) for each in libraries()]


def test_dynamic_teams_and_thread_counts_are_put_back() -> None:
    before = settings()
    with openmp_kept():
        for each in libraries():
            each.omp_set_dynamic(1)
            each.omp_set_num_threads(7)
        assert settings() != before
    assert settings() == before


def test_cyanure_leaves_torch_with_teams_of_fixed_size() -> None:
    """Else a busy machine's QR of torch would wait for a thread that is not there."""
    pytest.importorskip("cyanure", reason="cyanure is not installed")
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(60, 5, generator=generator), torch.arange(60) % 3
    before = settings()
    solve_with_cyanure(features, labels, 0.1)
    assert settings() == before
