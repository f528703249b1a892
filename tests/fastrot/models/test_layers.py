"""The layers compute what torch's do, whoever computes them, under the same names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastrot.config import ModelConfig
from fastrot.models.backbones import build_model
from fastrot.models.layers import (
    BatchNorm,
    FirstConv2d,
    SyncBatchNorm,
    share_batch_norm,
    use_batch_norm,
)


def channels_last(*shape: int, seed: int) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("engine", ["torch", "fused"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_torchs_and_what_follows(
    engine: str, relu: bool, residual: bool, training: bool
) -> None:
    ours, theirs = BatchNorm(6, relu=relu), nn.BatchNorm2d(6)
    with torch.no_grad():
        for layer in (ours, theirs):
            layer.weight.copy_(torch.linspace(0.5, 2, 6))
            layer.bias.copy_(torch.linspace(-1, 1, 6))
            layer.running_mean.copy_(torch.linspace(0, 1, 6))
            layer.running_var.copy_(torch.linspace(1, 3, 6))
            layer.train(training)
    use_batch_norm(ours, engine)
    x, y = channels_last(3, 6, 5, 4, seed=0), channels_last(3, 6, 5, 4, seed=1)
    out = ours(x, y) if residual else ours(x)
    expected = theirs(x) + y if residual else theirs(x)
    if relu:
        expected = expected.relu()
    exact = {"rtol": 0, "atol": 0} if engine == "torch" else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(out, expected, **exact)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, **exact)
    if not training and engine == "fused":
        return  # what the running statistics gave has no gradient
    inputs = [x, y] if residual else [x]
    along = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    own = torch.autograd.grad(out, [*inputs, ours.weight, ours.bias], along)
    theirs_ = torch.autograd.grad(expected, [*inputs, theirs.weight, theirs.bias], along)
    torch.testing.assert_close(own, theirs_, rtol=1e-4, atol=1e-5)


def test_a_channel_of_zeros_changes_nothing() -> None:
    first = FirstConv2d(3, 8, 7, 2, 3, bias=False)
    views = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([views, torch.zeros(2, 1, 32, 32)], 1)
    plain = nn.functional.conv2d(views, first.weight, None, 2, 3)
    torch.testing.assert_close(first(views), plain, rtol=0, atol=0)
    torch.testing.assert_close(first(padded), plain, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(first(padded).square().sum(), first.weight)
    (expected,) = torch.autograd.grad(plain.square().sum(), first.weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "rotnet_nin"])
def test_engines_share_every_name_and_tensor(name: str) -> None:
    model = build_model(ModelConfig(name=name, width=8), seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused, shared = copy.deepcopy(model), copy.deepcopy(model)
    use_batch_norm(fused, "fused")
    share_batch_norm(shared)
    kinds = {type(module) for module in shared.modules()}
    assert SyncBatchNorm in kinds and BatchNorm not in kinds
    for other in (fused, shared):
        state = other.state_dict()
        assert list(state) == list(before)
        assert all(torch.equal(state[key], value) for key, value in before.items())


def test_a_model_that_shares_statistics_can_be_copied() -> None:
    model = build_model(ModelConfig(name="resnet18", width=8), seed=0)
    use_batch_norm(model, "fused")
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.group = "0"  # the name of a group
    copied = copy.deepcopy(model)
    assert {m.group for m in copied.modules() if isinstance(m, BatchNorm)} == {"0"}


def test_shared_statistics_alone_on_a_rank_are_plain_ones() -> None:
    """Evaluation needs no other rank; torch's SyncBatchNorm trains on GPUs only."""
    model = build_model(ModelConfig(name="resnet18", width=8, stem="small"), seed=0).eval()
    views = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(views)
        share_batch_norm(model)
        torch.testing.assert_close(model.eval()(views), expected, rtol=0, atol=0)
