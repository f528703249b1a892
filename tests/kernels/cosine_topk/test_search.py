"""The search: its slack holds for any data, and rows are scored again only where they must be."""

from __future__ import annotations

import pytest
import torch

from fastrot.kernels.cosine_topk import reference, search
from fastrot.kernels.cosine_topk.search import cosine_topk, gathered_products, product_slack

M, B, D = 40, 300, 700
KINDS = ["noise", "near", "one direction", "equal", "zeros", "spikes"]


def data(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(M + B, D, generator=random)
    if kind == "near":  # an untrained network: all rows nearly the same
        rows = 1 + 1e-3 * rows
    elif kind == "one direction":
        rows = rows[:, :1] * torch.ones(D) + 1e-5 * rows
    elif kind == "equal":
        rows = torch.ones(M + B, D)
    elif kind == "zeros":
        rows[::3] = 0
    elif kind == "spikes":
        rows = rows**9
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return rows[:M].contiguous(), rows[M:].contiguous()


def blank(m: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((m, k), -torch.inf), torch.full((m, k), -1)


def scored(queries: torch.Tensor, bank: torch.Tensor, k: int) -> int:
    """How many similarities the search computed; what it found is the definition's."""
    found, expected = blank(len(queries), k), blank(len(queries), k)
    count = cosine_topk(queries, bank, 7, *found, gathered_products)
    reference.cosine_topk(queries, bank, 7, *expected)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_no_similarity_is_above_its_product_and_the_slack(kind: str) -> None:
    queries, bank = data(kind)
    exact = (queries.double() @ bank.double().T).float().double()
    products = (queries @ bank.T).double()
    excess = products + product_slack(queries, bank)[:, None] - exact
    assert excess.min() >= 0 and (excess - (products - exact)).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 20, 290])
def test_any_data_gives_what_the_definition_gives(kind: str, k: int) -> None:
    scored(*data(kind), k)


def test_rows_that_are_apart_are_scored_once() -> None:
    assert scored(*data("noise"), 20) == M * (20 + 32)


def test_only_queries_in_doubt_are_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank = data("noise")
    queries[1:] -= queries[1:] @ queries[0][:, None] * queries[0]  # at right angles to the first
    bank[:60] = queries[0]  # more copies than k and the margin
    assert scored(queries, bank, 20) == M * 52 + 208
    monkeypatch.setattr(search, "_KEPT", 100)  # queries are searched in parts
    assert scored(queries, bank, 20) == M * 52 + 208
    queries, _ = data("noise")
    bank[:] = queries[0]
    assert scored(queries, bank, 20) == M * (52 + 208 + B)


def test_sizes_of_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank = data("zeros")
    monkeypatch.setattr(search, "_PRODUCT_BYTES", 4 * B * 7)
    monkeypatch.setattr(search, "_TILE", 64)
    for margin in (0, 1, 32):
        monkeypatch.setattr(search, "_MARGIN", margin)
        scored(queries, bank, 5)


@pytest.mark.parametrize("columns", [9, 90, 1000, 1009])
def test_the_highest_of_many_columns_are_those_of_topk(columns: int) -> None:
    random = torch.Generator().manual_seed(columns)
    products = torch.randint(0, 500, (30, columns), generator=random).float()  # with ties
    for kept in (1, 8, 9):
        values, places = search._highest(products, kept)
        assert torch.equal(values, products.gather(1, places))
        assert torch.equal(
            values.sort(dim=1, descending=True).values, products.topk(kept, dim=1).values
        )
        assert all(len(set(row)) == kept for row in places.tolist())


def test_precision_that_training_gives_up_is_not_given_up_here() -> None:
    queries, bank = data("noise")
    before = torch.get_float32_matmul_precision()
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        try:
            with torch.autocast("cpu", torch.bfloat16):
                assert scored(queries, bank, 10) == M * 42
            assert torch.get_float32_matmul_precision() == precision
        finally:
            torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("b", [9_999, 50_000])
def test_real_sizes_on_a_gpu(b: int) -> None:
    random = torch.Generator("cuda").manual_seed(b)
    rows = torch.randn(b + 1_001, 2048, generator=random, device="cuda") + 0.5
    rows /= rows.norm(dim=1, keepdim=True)
    found, expected = (tuple(each.cuda() for each in blank(1_001, 200)) for _ in range(2))
    cosine_topk(rows[b:], rows[:b], 7, *found, gathered_products)
    reference.cosine_topk(rows[b:], rows[:b], 7, *expected)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
