"""Standardised features are those of batch norm without affine parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastrot.evaluation.linear.standardise import channel_statistics, read_rows, standardise
from fastrot.features.cache import LayerInfo
from tests.fastrot.features.written_cache import write_cache


def test_rows_are_those_of_batch_norm_in_evaluation() -> None:
    maps = 3 + 2 * torch.randn(50, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    maps[:, 5] = 0.25  # a constant channel
    norm = torch.nn.BatchNorm2d(6, affine=False, momentum=1.0)
    norm(maps)  # its running statistics are now those of the batch
    norm.eval()
    rows = maps.reshape(50, -1).clone()
    statistics = channel_statistics(rows, 6)
    np.testing.assert_allclose(standardise(rows, statistics), norm(maps).reshape(50, -1), atol=2e-5)


def test_one_value_a_channel_has_no_variance() -> None:
    statistics = channel_statistics(torch.tensor([[4.0, 2.0]]), 2)
    assert statistics.mean.tolist() == [4.0, 2.0]
    assert statistics.variance.tolist() == [0.0, 0.0]


def test_rows_are_the_first_crops_of_the_chosen_samples(tmp_path: Path) -> None:
    values = np.arange(4 * 3 * 2, dtype=np.float32).reshape(4, 3, 2)
    crops = write_cache(
        tmp_path / "crops",
        features={"pool": values},
        labels=np.zeros(4, np.int64),
        fingerprint={},
        layers={"pool": LayerInfo(2, 1, 2, "")},
    )
    assert read_rows(crops, "pool", np.array([3, 1])).tolist() == values[[3, 1], 0].tolist()
    plain = write_cache(
        tmp_path / "plain",
        features={"pool": values[:, 1]},
        labels=np.zeros(4, np.int64),
        fingerprint={},
    )
    assert read_rows(plain, "pool", np.array([2])).tolist() == values[[2], 1].tolist()
