"""Buckets: those that torch itself makes."""

from __future__ import annotations

import pytest
import torch

from fastrot.benchmarks.plan.overlap import BUCKET, FIRST_BUCKET, bucket_of
from fastrot.config import ModelConfig, ModelName
from fastrot.models.backbones import build_model


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_buckets_are_torchs(name: ModelName) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(name=name), seed=0)
    ready = [torch.empty(p.shape) for p in reversed(list(model.parameters()))]
    packed, _ = torch.distributed._compute_bucket_assignment_by_size(  # type: ignore[attr-defined]
        ready, [FIRST_BUCKET, BUCKET]
    )
    expected = {tensor: number for number, bucket in enumerate(packed) for tensor in bucket}
    found = bucket_of([4 * tensor.numel() for tensor in ready])
    assert found == [expected[position] for position in range(len(ready))]


def test_torch_still_has_these_limits() -> None:
    assert torch.distributed._DEFAULT_FIRST_BUCKET_BYTES == FIRST_BUCKET  # type: ignore[attr-defined]
