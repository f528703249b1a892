"""The compiled search: threads, blocks, what it may skip, and what would overrun it."""

from __future__ import annotations

import pytest
import torch

from fastrot.kernels import dispatch
from fastrot.kernels.cosine_topk import bound, reference

if problem := dispatch.unavailable("cosine_topk", "cpp", "cpu"):
    pytest.skip(problem, allow_module_level=True)

from fastrot.kernels import _native
from fastrot.kernels.cosine_topk import cpp


def features(count: int, dims: int, seed: int, noise: float = 0.05) -> torch.Tensor:
    """Unit rows near a space of few dimensions, as features are."""
    shared, own = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    directions = torch.randn(12, dims, generator=shared)
    rows = torch.randn(count, 12, generator=own) @ directions + 2
    rows += noise * rows.std() * torch.randn(count, dims, generator=own)
    return rows / rows.norm(dim=1, keepdim=True)


def blank(m: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((m, k), -torch.inf), torch.full((m, k), -1)


@pytest.fixture
def always_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "_WORK", 0)
    monkeypatch.setattr(bound, "_SAMPLE", 480)


@pytest.mark.usefixtures("always_narrow")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("k", [1, 20, 150])
def test_a_narrow_bound_finds_the_same_with_fewer_sums(
    monkeypatch: pytest.MonkeyPatch, k: int, threads: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(cpp, "_BLOCK_BYTES", 4 * 2000 * 30)  # several blocks of queries
    queries, bank = features(100, 512, 1), features(2000, 512, 2)
    bank[1500:] = bank[:500]  # ties
    assert bound.bound_factors(queries, bank, k).left.shape[1] < 512 // 4
    found, expected = blank(100, k), blank(100, k)
    sums = cpp.cosine_topk(queries, bank, 0, *found)
    reference.cosine_topk(queries, bank, 0, *expected)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert 100 * k <= sums < 100 * (k + 200)


@pytest.mark.usefixtures("always_narrow")
def test_a_useless_bound_only_costs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank = features(20, 256, 1, noise=5.0), features(500, 256, 2, noise=5.0)
    centre, space = torch.ones(256), torch.linalg.qr(torch.randn(256, 2))[0].contiguous()
    monkeypatch.setattr(bound, "fit_space", lambda *_: (centre, space))
    found, expected = blank(20, 10), blank(20, 10)
    sums = cpp.cosine_topk(queries, bank, 0, *found)
    reference.cosine_topk(queries, bank, 0, *expected)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert sums > 20 * 250


@pytest.mark.usefixtures("always_narrow")
def test_precision_that_training_gives_up_is_not_given_up_here() -> None:
    queries, bank = features(60, 512, 1), features(2000, 512, 2)
    expected = blank(60, 10)
    reference.cosine_topk(queries, bank, 0, *expected)
    before = torch.get_float32_matmul_precision()
    for precision in ("highest", "medium"):
        found = blank(60, 10)
        torch.set_float32_matmul_precision(precision)
        try:
            with torch.autocast("cpu", torch.bfloat16):
                cpp.cosine_topk(queries, bank, 0, *found)
            assert torch.get_float32_matmul_precision() == precision
        finally:
            torch.set_float32_matmul_precision(before)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.usefixtures("always_narrow")
def test_blocks_after_the_first_need_few_sums() -> None:
    queries, bank = features(50, 512, 1), features(3000, 512, 2)
    found, expected = blank(50, 10), blank(50, 10)
    sums = [
        cpp.cosine_topk(queries, bank[start : start + 600], start, *found)
        for start in range(0, 3000, 600)
    ]
    reference.cosine_topk(queries, bank, 0, *expected)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert sums[4] < sums[0]


def test_the_extension_refuses_what_would_overrun() -> None:
    queries, bank, bounds = torch.zeros(3, 8), torch.zeros(5, 8), torch.zeros(3, 5)
    slack, (similarities, indices) = torch.zeros(3, dtype=torch.float64), blank(3, 2)
    sound = [bounds, slack, queries, bank, 0, similarities, indices, 1]
    assert _native.cosine_topk(*sound) == 15  # all are equal, so each could be the nearest
    for place, wrong in (
        (0, bounds[:2]),
        (0, torch.zeros(3, 4)),
        (1, slack[:2]),
        (2, queries[:, :7].contiguous()),
        (3, torch.zeros(4, 8)),
        (5, similarities[:2]),
        (6, torch.zeros(3, 3, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError, match="do not fit together"):
            _native.cosine_topk(*sound[:place], wrong, *sound[place + 1 :])
    for place, wrong in (
        (0, bounds.double()),  # another dtype is not converted
        (3, torch.zeros(8, 5).T),  # strides are not copied away
        (6, indices.int()),
    ):
        with pytest.raises(TypeError):
            _native.cosine_topk(*sound[:place], wrong, *sound[place + 1 :])
