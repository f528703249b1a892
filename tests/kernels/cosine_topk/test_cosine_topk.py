"""Every implementation of cosine_topk finds the same neighbours, bit for bit."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from fastrot.kernels import dispatch
from fastrot.kernels.cosine_topk import op, reference
from fastrot.kernels.cosine_topk.op import cosine_topk

IMPLEMENTATIONS = ["reference", "cpp", "cuda"]


@pytest.fixture(params=IMPLEMENTATIONS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take one implementation after the other; the device that its inputs must be on."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        return "cuda"
    if problem := dispatch.unavailable("scalar_products", request.param, "cpu"):
        pytest.skip(problem)
    monkeypatch.setenv(dispatch.VARIABLE, request.param)
    return "cpu"


def unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def rows(count: int, dims: int, seed: int = 0) -> torch.Tensor:
    """Unit rows like features: positive, near each other, of few directions and some noise."""
    random = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(dims)
    directions = torch.randn(min(dims, 8), dims, generator=shared)
    values = torch.randn(count, len(directions), generator=random) @ directions
    values = (values + 0.1 * torch.randn(count, dims, generator=random)).relu()
    return unit(values + 0.01)


def by_hand(queries: torch.Tensor, bank: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The contract spelled out in numpy: an oracle for the reference itself."""
    exact = (queries.numpy().astype(np.float64) @ bank.numpy().astype(np.float64).T).astype(
        np.float32
    )
    order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    similarities = np.take_along_axis(exact, order, axis=1)
    missing = max(0, k - len(bank))
    return (
        np.pad(similarities, ((0, 0), (0, missing)), constant_values=-np.inf),
        np.pad(order, ((0, 0), (0, missing)), constant_values=-1),
    )


def test_the_definition_is_the_contract() -> None:
    queries, bank = rows(4, 24, seed=1), rows(30, 24).repeat(3, 1)
    for k in (1, 7, 100):
        similarities, indices = torch.full((4, k), -torch.inf), torch.full((4, k), -1)
        reference.cosine_topk(queries, bank[:50], 0, similarities, indices)
        reference.cosine_topk(queries, bank[50:], 50, similarities, indices)
        expected = by_hand(queries, bank, k)
        np.testing.assert_array_equal(similarities.numpy(), expected[0])
        np.testing.assert_array_equal(indices.numpy(), expected[1])


def check(device: str, queries: torch.Tensor, bank: torch.Tensor, k: int) -> None:
    found = cosine_topk(queries.to(device), bank.to(device), k)
    expected = by_hand(queries, bank, k)
    np.testing.assert_array_equal(found[1].cpu().numpy(), expected[1])
    np.testing.assert_array_equal(found[0].cpu().numpy(), expected[0])


# 1: smallest; 31, 33: beside the lanes of a sum; 63, 64, 65: beside the queries of a thread.
@pytest.mark.parametrize(
    ("m", "b", "dims", "k"),
    [
        *((1, 1, 1, 1), (3, 64, 31, 5), (2, 65, 33, 64), (2, 130, 32, 129), (3, 130, 100, 1)),
        *((9, 63, 7, 63), (65, 200, 16, 20), (4, 10, 5, 12)),
        *((3, 1007, 24, 5), (2, 2009, 24, 60)),  # so many that the best of groups come first
    ],
)
def test_neighbours_equal_the_contract(device: str, m: int, b: int, dims: int, k: int) -> None:
    check(device, rows(m, dims, seed=1), rows(b, dims, seed=2), k)


def test_of_equal_similarities_the_lower_row_comes_first(device: str) -> None:
    bank = rows(20, 24)[torch.arange(100) % 20]
    for k in (1, 4, 6, 33):
        check(device, bank[:2], bank, k)


@pytest.mark.parametrize("copies", [30, 40, 400])
def test_more_ties_than_the_margin_are_all_seen(device: str, copies: int) -> None:
    random = torch.Generator().manual_seed(8)
    bank = rows(20, 24, seed=6).repeat(copies, 1)[torch.randperm(20 * copies, generator=random)]
    for k in (1, 7, copies + 1):
        check(device, torch.cat([bank[:2], rows(2, 24, seed=9)]), bank, k)


def test_a_bank_of_zeros_or_of_one_row_ties_everywhere(device: str) -> None:
    for bank in (torch.zeros(500, 16), rows(1, 16).expand(500, 16)):
        check(device, torch.cat([rows(3, 16), torch.zeros(1, 16)]), bank, 3)


def test_rows_that_float32_products_confuse_are_told_apart(device: str) -> None:
    random = torch.Generator().manual_seed(3)
    bank = rows(1, 60).repeat(150, 1)
    noise = torch.randint(-1, 2, bank.shape, generator=random)
    bank = bank * (1 + noise * 2.0**-22)  # differences of a few units in the last place
    check(device, rows(2, 60, seed=4), bank, 20)


def test_zeros_and_opposites_are_rows_like_others(device: str) -> None:
    bank = torch.cat([-rows(30, 16), torch.zeros(5, 16), rows(10, 16)])
    check(device, torch.cat([rows(3, 16), torch.zeros(1, 16)]), bank, 45)
    check(device, torch.cat([-rows(3, 16), torch.zeros(1, 16)]), bank, 12)


@pytest.mark.parametrize("step", [9, 50, 99])
def test_blocks_give_what_the_whole_gives(device: str, step: int) -> None:
    queries, bank = rows(3, 20, seed=1).to(device), rows(100, 20).to(device)
    bank[50:] = bank[:50].clone()  # ties across blocks
    best = None
    for start in range(0, 100, step):
        best = cosine_topk(queries, bank[start : start + step], 11, first_row=start, best=best)
    assert best is not None
    for whole, parts in zip(cosine_topk(queries, bank, 11), best, strict=True):
        assert torch.equal(whole, parts)


def test_what_came_before_is_not_overwritten(device: str) -> None:
    queries, bank = rows(2, 8).to(device), rows(40, 8, seed=5).to(device)
    best = cosine_topk(queries, bank[:20], 3)
    kept = [tensor.clone() for tensor in best]
    cosine_topk(queries, bank[20:], 3, first_row=20, best=best)
    assert all(torch.equal(one, other) for one, other in zip(best, kept, strict=True))


def test_nothing_gives_nothing(device: str) -> None:
    queries, bank = rows(3, 8).to(device), rows(4, 8).to(device)
    assert cosine_topk(queries[:0], bank, 2)[0].shape == (0, 2)
    similarities, indices = cosine_topk(queries, bank[:0], 2)
    assert indices.tolist() == [[-1, -1]] * 3 and similarities.isinf().all()


def test_strided_inputs_are_taken(device: str) -> None:
    queries, bank = rows(6, 40), rows(90, 40, seed=2)
    check(device, queries[::2, 3:30], bank[::3, 3:30], 4)


QUERIES, BANK = rows(3, 8), rows(9, 8, seed=1)
BEST = (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((QUERIES.double(), BANK, 2), {}, TypeError, r"queries is torch.float64 but must be"),
        ((QUERIES, BANK.half(), 2), {}, TypeError, r"use bank.to\(torch.float32\)"),
        ((QUERIES, BANK[:, :7], 2), {}, ValueError, "8 dimensions and bank 7"),
        ((QUERIES[:, :0], BANK[:, :0], 2), {}, ValueError, "at least one"),
        ((QUERIES[0], BANK, 2), {}, ValueError, r"queries of shape \(8,\)"),
        ((QUERIES, BANK.to("meta"), 2), {}, ValueError, "bank is on meta"),
        ((QUERIES, BANK, 0), {}, ValueError, "k=0 must be at least 1"),
        ((QUERIES, BANK, 2), {"first_row": -1}, ValueError, "first_row=-1"),
        ((QUERIES, BANK, 3), {"best": BEST}, ValueError, "best holds 2 neighbours instead of k=3"),
        ((QUERIES[:2], BANK, 2), {"best": BEST}, ValueError, r"must be \(m, k\) with m = 2"),
    ],
)
def test_a_wrong_argument_is_named(arguments, options, error, message) -> None:
    with pytest.raises(error, match=message):
        cosine_topk(*arguments, **options)


def test_registration_passes_torchs_own_checks() -> None:
    torch.library.opcheck(op._operation, (QUERIES, BANK, *BEST, 9))


def test_a_compiled_graph_holds_the_operation() -> None:
    compiled = torch.compile(lambda q, b: cosine_topk(q, b, 4), backend="aot_eager", fullgraph=True)
    for one, other in zip(compiled(QUERIES, BANK), cosine_topk(QUERIES, BANK, 4), strict=True):
        assert torch.equal(one, other)


def test_examples_in_docstrings_hold() -> None:
    results = doctest.testmod(op)
    assert results.attempted > 0 and results.failed == 0
