"""The published learning rate at known steps, the parameter groups, and LARS by its formula."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastrot.config import ModelConfig, OptimConfig, load_config
from fastrot.models.backbones import build_model
from fastrot.training.optim import LARS, build_optimizer, learning_rate

STEPS = 10_009
TRUST, DECAY, RATE, MOMENTUM = 0.02, 0.1, 0.5, 0.9


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.02),
        (STEPS * 5 // 2, 0.02 + 0.18 * (STEPS * 5 // 2) / (STEPS * 5)),
        (STEPS * 5, 0.2),
        (STEPS * 30 - 1, 0.2),
        (STEPS * 30, 0.02),
        (STEPS * 50 - 1, 0.02),
        (STEPS * 50, 0.002),
        (STEPS * 70 - 1, 0.002),
    ],
)
def test_published_recipe_at_known_steps(step: int, expected: float) -> None:
    optim = load_config("resnet50_8xb16-steplr-70e").optim
    assert learning_rate(step, STEPS, STEPS * 70, optim) == pytest.approx(expected, rel=1e-12)


def test_rotnet_recipe_at_known_steps() -> None:
    optim = load_config("cifar10_nin_rotnet").optim
    rates = [learning_rate(epoch * 390, 390, 200 * 390, optim) for epoch in (0, 60, 120, 160)]
    assert rates == pytest.approx([0.1, 0.02, 0.004, 0.0008])


def test_cosine_falls_from_the_peak_to_the_end() -> None:
    optim = OptimConfig(schedule="cosine", learning_rate=1.0, warmup_epochs=1, final_ratio=0.1)
    rates = [learning_rate(step, 10, 100, optim) for step in range(101)]
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_decay_of_norms_and_biases_can_be_left_out() -> None:
    model = build_model(ModelConfig(name="resnet18", width=8), seed=0)
    everything = build_optimizer(model, OptimConfig(decay_norm_and_bias=True))
    assert [group["weight_decay"] for group in everything.param_groups] == [1e-4]
    split = build_optimizer(model, OptimConfig(decay_norm_and_bias=False))
    assert [group["weight_decay"] for group in split.param_groups] == [1e-4, 0.0]
    # Also torchvision's downsample.1, which a search for "bn" in the name would miss.
    undecayed = {id(parameter) for parameter in split.param_groups[1]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in undecayed}
    assert "backbone.layer2.0.downsample.1.weight" in names
    assert "head.fc.bias" in names
    assert all(parameter.ndim == 1 for parameter in split.param_groups[1]["params"])


# --- LARS -----------------------------------------------------------------------------------


def lars_of(*tensors: torch.Tensor) -> LARS:
    return LARS(
        [{"params": list(tensors), "weight_decay": DECAY}],
        trust_coefficient=TRUST, lr=RATE, momentum=MOMENTUM, fused=True,
    )  # fmt: skip


def test_two_steps_of_lars_are_those_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(4, 3, generator=generator), torch.randn(4, generator=generator)
    parameters = [torch.nn.Parameter(weight.clone()), torch.nn.Parameter(bias.clone())]
    optimizer = lars_of(*parameters)
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


def test_a_skipped_step_of_lars_changes_nothing_even_with_nan() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = lars_of(weight)
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


def test_lars_trains_by_the_recipes_settings() -> None:
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
