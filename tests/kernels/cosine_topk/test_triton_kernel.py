"""The Triton search: pieces that overflow their places here, real sizes on a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from fastrot.kernels.cosine_topk import reference

pytest.importorskip("triton")


@pytest.fixture
def kernel() -> Iterator[ModuleType]:
    """The module, interpreted where there is no GPU."""
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setenv("TRITON_INTERPRET", "1")
        module = importlib.import_module("fastrot.kernels.cosine_topk.triton_kernel")
        importlib.reload(module)  # another test may have imported it without the interpreter
        yield module
    importlib.reload(module)


def both(
    kernel: ModuleType, queries: torch.Tensor, bank: torch.Tensor, k: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    found, expected = (
        [
            torch.full((len(queries), k), -torch.inf, device=queries.device),
            torch.full((len(queries), k), -1, device=queries.device),
        ]
        for _ in range(2)
    )
    kernel.cosine_topk(queries, bank, 7, *found)
    reference.cosine_topk(queries, bank, 7, *expected)
    return found, expected


def unit_rows(count: int, dims: int, device: str) -> torch.Tensor:
    random = torch.Generator().manual_seed(count)
    rows = torch.randn(count, dims, generator=random).to(device) + 0.5
    return rows / rows.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("order", ["worst first", "best first", "equal"])
def test_more_rows_than_places_are_taken_in_smaller_pieces(
    kernel: ModuleType, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr(kernel, "_LEAST_PLACES", 8)
    queries, bank = unit_rows(2, 20, device), unit_rows(70, 20, device)
    nearest = (bank @ queries[0]).argsort(descending=order == "best first")
    bank = bank[nearest] if order != "equal" else bank[:1].expand(70, 20).contiguous()
    found, expected = both(kernel, queries, bank, 2)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("b", [9_999, 50_000])
def test_real_sizes(kernel: ModuleType, b: int) -> None:
    found, expected = both(kernel, unit_rows(1_001, 2048, "cuda"), unit_rows(b, 2048, "cuda"), 200)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
