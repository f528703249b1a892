"""Bounds hold for any data, centre and space, and are tight where features are narrow."""

from __future__ import annotations

import pytest
import torch

from fastrot.kernels.cosine_topk.bound import bound_factors, fit_space, narrow_factors

M, B, D = 40, 300, 700


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


KINDS = ["noise", "near", "one direction", "equal", "zeros", "spikes"]


def excess(factors: object, queries: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    left, right, slack = factors  # type: ignore[misc]
    exact = (queries.double() @ bank.double().T).float().double()
    return (left @ right.T).double() + slack[:, None] - exact


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 5, 64])
@pytest.mark.parametrize("orthonormal", [1.0, 1.001])
def test_no_similarity_is_above_its_bound(kind: str, width: int, orthonormal: float) -> None:
    queries, bank = data(kind)
    random = torch.Generator().manual_seed(width)
    space = torch.linalg.qr(torch.randn(D, width, generator=random))[0] * orthonormal
    for centre in (bank.mean(dim=0), torch.zeros(D), -bank[0], torch.full((D,), 0.3)):
        factors = narrow_factors(queries, bank, centre, space)
        assert factors.left.shape == (M, width + 2) and factors.right.shape == (B, width + 2)
        assert excess(factors, queries, bank).min() >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_whole_rows_are_a_bound(kind: str) -> None:
    queries, bank = data(kind)
    factors = bound_factors(queries, bank, 10)
    assert factors.left is queries and factors.right is bank
    slack = excess(factors, queries, bank)
    assert 0 <= slack.min() and slack.max() < 1e-4


def narrow(noise: float) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    rows = torch.randn(3000, 20, generator=random) @ torch.randn(20, D, generator=random)
    rows += noise * rows.std() * torch.randn(3000, D, generator=random) + 3
    return rows / rows.norm(dim=1, keepdim=True)


def test_a_space_is_found_where_there_is_one() -> None:
    rows = narrow(noise=0.02)
    found = fit_space(rows, 20, 3000)
    assert found is not None
    centre, space = found
    assert space.shape == (D, 32)  # the least that holds 20
    assert fit_space(rows, 20, 1) is None  # for one query, projecting the bank costs more
    assert torch.allclose(space.T @ space, torch.eye(32), atol=1e-5)
    factors = narrow_factors(rows[:50], rows, centre, space)
    above = excess(factors, rows[:50], rows)
    assert 0 <= above.min() and above.max() < 2e-3
    again = fit_space(rows, 20, 3000)
    assert again is not None and torch.equal(space, again[1])


def test_no_space_is_taken_where_there_is_none() -> None:
    assert fit_space(narrow(noise=10.0), 20, 3000) is None
    assert fit_space(torch.ones(3000, D), 20, 3000) is None
