"""Compiled scalar products: of any rows in any order, by any threads, and nothing overruns."""

from __future__ import annotations

import pytest
import torch

from fastrot.kernels import dispatch
from fastrot.kernels.cosine_topk.search import compiled_products, gathered_products

if problem := dispatch.unavailable("scalar_products", "cpp", "cpu"):
    pytest.skip(problem, allow_module_level=True)

from fastrot.kernels import _native


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("increasing", [True, False])
def test_products_are_rounded_once(
    monkeypatch: pytest.MonkeyPatch, threads: int, increasing: bool
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    random = torch.Generator().manual_seed(0)
    # 2,100 rows of 1,030 values are 8.3 MiB: two tiles of the bank, and a rest of lanes.
    queries, bank = (torch.randn(n, 1030, generator=random) for n in (130, 2100))
    rows = torch.randint(0, len(bank), (130, 9), generator=random)
    rows[0] = len(bank) - 1
    if increasing:
        rows = rows.sort(dim=1).values
    exact = (queries.double() @ bank.double().T).float().gather(1, rows)
    assert torch.equal(compiled_products(queries, bank, rows), exact)
    assert torch.equal(gathered_products(queries, bank, rows), exact)


def test_nothing_gives_nothing() -> None:
    queries, bank = torch.zeros(2, 4), torch.zeros(3, 4)
    for m, c in ((0, 3), (2, 0)):
        rows = torch.zeros(m, c, dtype=torch.int64)
        assert compiled_products(queries[:m], bank, rows).shape == (m, c)


def test_the_extension_refuses_what_would_overrun() -> None:
    queries, bank, products = torch.zeros(3, 8), torch.zeros(5, 8), torch.ones(3, 2)
    rows = torch.tensor([[0, 4]] * 3)
    sound = [queries, bank, rows, products, 1]
    _native.scalar_products(*sound)
    assert not products.any()
    for place, wrong, message in (
        (0, queries[:2], "do not fit together"),
        (0, queries[:, :7].contiguous(), "do not fit together"),
        (1, torch.zeros(5, 9), "do not fit together"),
        (2, rows[:, :1].contiguous(), "do not fit together"),
        (3, products[:2], "do not fit together"),
        (2, rows + 1, "a row is not in the bank"),
        (2, rows - 1, "a row is not in the bank"),
    ):
        with pytest.raises(ValueError, match=message):
            _native.scalar_products(*sound[:place], wrong, *sound[place + 1 :])
    for place, wrong in (
        (0, queries.double()),  # another dtype is not converted
        (1, torch.zeros(8, 5).T),  # strides are not copied away
        (2, rows.int()),
    ):
        with pytest.raises(TypeError):
            _native.scalar_products(*sound[:place], wrong, *sound[place + 1 :])
