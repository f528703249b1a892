"""The heads against torch's own layers, loss and optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastrot.errors import BadDataError, NonFiniteError
from fastrot.evaluation.linear.heads import HeadShape, LinearHeads
from fastrot.evaluation.linear.training import learning_rate
from fastrot.evaluation.protocol import LinearConfig

CPU = torch.device("cpu")
SHAPES = [HeadShape("stem", 6, 3), HeadShape("pool", 20, 1)]
CLASSES = 7


def rows(seed: int, size: int = 16) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    features = {s.layer: (torch.randn(size, s.dim, generator=made) * 3 + 1).half() for s in SHAPES}
    return features, torch.randint(CLASSES, (size,), generator=made)


def torch_head(heads: LinearHeads, shape: HeadShape, config: LinearConfig) -> nn.Sequential:
    """The published head, with the same first weights."""
    linear = nn.Linear(shape.dim, CLASSES)
    state = heads.state()
    with torch.no_grad():
        linear.weight.copy_(state[f"{shape.layer}.weight"])
        linear.bias.copy_(state[f"{shape.layer}.bias"])
    norm = nn.BatchNorm2d(shape.channels, affine=False) if config.batchnorm else nn.Identity()
    unflatten = nn.Unflatten(1, (shape.channels, shape.grid, shape.grid))
    return nn.Sequential(unflatten, norm, nn.Flatten(), linear)


@pytest.mark.parametrize(
    "settings",
    [
        {},  # MMSelfSup's heads
        {"batchnorm": False, "nesterov": False, "weight_decay": 0.0, "learning_rate": 0.5},
        {"nesterov": False, "weight_decay": 0.05},
        {"weight_decay": 0.05, "learning_rate": 0.3},  # Nesterov's decay of moved weights
        {"momentum": 0.0, "nesterov": False},
    ],
    ids=lambda settings: ",".join(settings) or "published",
)
def test_steps_equal_torch(settings: dict[str, Any]) -> None:
    config = LinearConfig(**settings)
    heads = LinearHeads(SHAPES, CLASSES, config, CPU)
    nets = {shape.layer: torch_head(heads, shape, config) for shape in SHAPES}
    optimizers = {
        layer: torch.optim.SGD(
            net.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        for layer, net in nets.items()
    }
    for step in range(12):
        features, labels = rows(step)
        rate = config.learning_rate * (0.1 if step >= 6 else 1)  # as after a milestone
        heads.step(features, labels, rate)
        expected = {}
        for layer, net in nets.items():
            optimizers[layer].param_groups[0]["lr"] = rate
            loss = nn.functional.cross_entropy(net(features[layer].float()), labels)
            optimizers[layer].zero_grad()
            loss.backward()
            optimizers[layer].step()
            expected[layer] = loss.item()
        losses, samples = heads.losses()
        assert samples == 16 and losses == pytest.approx(expected, rel=1e-5)
    features, _ = rows(99)
    for layer, net in nets.items():
        net.eval()
        ours, theirs = heads.logits(layer, features[layer]), net(features[layer].float())
        # Both round in float32, in other orders; 12 steps carry that on.
        torch.testing.assert_close(ours, theirs.detach(), rtol=2e-5, atol=2e-5)
        weight = heads.state()[f"{layer}.weight"]
        torch.testing.assert_close(weight, net[3].weight.detach(), rtol=2e-5, atol=2e-6)


def test_a_head_starts_the_same_whatever_is_beside_it() -> None:
    config = LinearConfig()
    alone = LinearHeads(SHAPES[1:], CLASSES, config, CPU).state()
    both = LinearHeads(SHAPES, CLASSES, config, CPU).state()
    assert torch.equal(alone["pool.weight"], both["pool.weight"])
    other = LinearHeads(SHAPES, CLASSES, LinearConfig(seed=1), CPU).state()
    assert not torch.equal(both["pool.weight"], other["pool.weight"])
    assert both["stem.weight"].std() == pytest.approx(0.01, rel=0.1)
    assert both["stem.bias"].eq(0).all()


def test_the_published_schedule() -> None:
    config = LinearConfig()  # 90 epochs, steps at 30, 60 and 90, of which the last never comes
    rates = [learning_rate(config, epoch) for epoch in range(config.epochs)]
    assert rates[:30] == [0.01] * 30
    assert rates[30:60] == pytest.approx([1e-3] * 30)
    assert rates[60:] == pytest.approx([1e-4] * 30)


def test_a_batch_of_one_row_that_is_globally_pooled_has_no_variance() -> None:
    heads = LinearHeads(SHAPES[1:], CLASSES, LinearConfig(), CPU)
    before = heads.state()
    features, labels = rows(0, size=1)
    heads.step(features, labels, 0.1)
    after = heads.state()
    assert torch.equal(before["pool.running_var"], after["pool.running_var"])
    assert not torch.equal(before["pool.bias"], after["pool.bias"])
    assert heads.losses()[1] == 1


def test_a_loss_that_is_not_finite_is_named() -> None:
    heads = LinearHeads(SHAPES, CLASSES, LinearConfig(batchnorm=False), CPU)
    features, labels = rows(0)
    features["pool"][3, 4] = float("inf")
    heads.step(features, labels, 0.1)
    with pytest.raises(NonFiniteError, match=r"linear head 'pool': the loss is nan .* lower it"):
        heads.losses()


def test_a_state_of_other_heads_is_refused() -> None:
    heads = LinearHeads(SHAPES, CLASSES, LinearConfig(), CPU)
    other = LinearHeads(SHAPES, CLASSES + 1, LinearConfig(), CPU)
    with pytest.raises(BadDataError, match=r"x\.safetensors: belongs to other heads; remove it"):
        heads.load(other.state(), "x.safetensors")
