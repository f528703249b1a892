"""The learning rate of the published recipe at known steps, and the parameter groups."""

from __future__ import annotations

import itertools

import pytest

from fastrot.config import ModelConfig, OptimConfig, load_config
from fastrot.models.backbones import build_model
from fastrot.training.optim import build_optimizer, learning_rate

STEPS = 10_009


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
