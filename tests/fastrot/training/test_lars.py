"""LARS against its formula, and what it leaves to SGD."""

from __future__ import annotations

import pytest
import torch

from fastrot.config import OptimConfig
from fastrot.training.optim import LARS, build_optimizer

TRUST, DECAY, RATE, MOMENTUM = 0.02, 0.1, 0.5, 0.9


def optimizer_of(*tensors: torch.Tensor) -> LARS:
    return LARS(
        [{"params": list(tensors), "weight_decay": DECAY}],
        trust_coefficient=TRUST, lr=RATE, momentum=MOMENTUM, fused=True,
    )  # fmt: skip


def test_two_steps_are_those_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(4, 3, generator=generator), torch.randn(4, generator=generator)
    parameters = [torch.nn.Parameter(weight.clone()), torch.nn.Parameter(bias.clone())]
    optimizer = optimizer_of(*parameters)
    momentum = torch.zeros_like(weight), torch.zeros_like(bias)
    w, b = weight.clone(), bias.clone()
    for _ in range(2):
        gradients = torch.randn(4, 3, generator=generator), torch.randn(4, generator=generator)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        scale = TRUST * w.norm() / (gradients[0].norm() + DECAY * w.norm())
        momentum[0].mul_(MOMENTUM).add_(scale * (gradients[0] + DECAY * w))
        momentum[1].mul_(MOMENTUM).add_(gradients[1] + DECAY * b)
        w, b = w - RATE * momentum[0], b - RATE * momentum[1]
    torch.testing.assert_close(parameters[0].data, w)
    torch.testing.assert_close(parameters[1].data, b)


def test_a_skipped_step_changes_nothing_even_with_nan() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = optimizer_of(weight)
    optimizer.state[weight]["momentum_buffer"] = torch.zeros(3, 3)
    weight.grad = torch.full((3, 3), torch.nan)
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    assert torch.equal(weight.data, torch.ones(3, 3))
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], torch.zeros(3, 3))


@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_zeros_take_the_plain_rate(zero: str) -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2) if zero == "weight" else torch.ones(2, 2))
    optimizer = LARS(
        [{"params": [weight], "weight_decay": 0.0}], trust_coefficient=TRUST, lr=RATE, fused=True
    )
    weight.grad = torch.zeros(2, 2) if zero == "gradient" else torch.ones(2, 2)
    optimizer.step()
    expected = torch.ones(2, 2) if zero == "gradient" else torch.full((2, 2), -RATE)
    assert torch.equal(weight.data, expected)


def test_it_trains_by_the_recipes_settings() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    config = OptimConfig(
        name="lars", learning_rate=0.05, trust_coefficient=0.5, weight_decay=1e-6,
        decay_norm_and_bias=False,
    )  # fmt: skip
    optimizer = build_optimizer(model, config)
    assert isinstance(optimizer, LARS)
    x = torch.randn(64, 8)
    y = x.sum(1, keepdim=True)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
