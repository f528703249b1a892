"""One optimizer step: accumulation, and what a NaN does and does not touch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastrot.config import load_config
from fastrot.data.loader import Batch
from fastrot.models.backbones import build_model
from fastrot.training.optim import build_optimizer, optimizer_tensors
from fastrot.training.rotation import RotationTask
from fastrot.training.step import TrainStep

CPU = torch.device("cpu")
CONFIG = load_config("digits", ["model.width=8"])


def batch(first: int, count: int) -> Batch:
    generator = torch.Generator().manual_seed(first)
    return Batch(
        images=torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator),
        labels=torch.zeros(count, dtype=torch.int64),
        index=torch.arange(first, first + count),
        flips=torch.zeros(count, dtype=torch.bool),
        turns=torch.arange(4, dtype=torch.uint8).repeat(count, 1),
    )


class Linear(nn.Module):
    """Convolutions in fp16 take minutes on a CPU; the scaler does not care what it scales."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.fc = nn.Linear(3 * 32 * 32, 4)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return self.fc(views.flatten(1) / 10)


def build(precision: str = "fp32") -> tuple[nn.Module, TrainStep]:
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model: nn.Module = Linear() if precision == "fp16" else build_model(CONFIG.model, seed=0)
    model = model.to(memory_format=torch.channels_last)
    task = RotationTask(CONFIG, CPU, dtype)
    scaler = torch.amp.GradScaler("cpu") if precision == "fp16" else None
    optimizer = build_optimizer(model, CONFIG.optim)
    return model, TrainStep(model, optimizer, task, device=CPU, scaler=scaler)


def everything(model: nn.Module, step: TrainStep) -> dict[str, torch.Tensor]:
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = optimizer_tensors(step.optimizer, model)
    return parameters | {name: value.clone() for name, value in buffers.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_few_steps_on_one_batch_learn_it(precision: str) -> None:
    _, step = build(precision)
    losses = []
    for _ in range(8):
        step([batch(0, 8)])
        losses.append(step.read().means["loss"])
    assert min(losses[4:]) < 0.9 * losses[0]
    assert step.read().finite_steps == 8


def test_totals_are_those_of_the_interval() -> None:
    _, step = build()
    step([batch(0, 4)])
    first = step.read()
    assert 0 <= first.means["accuracy"] <= 1 and first.means["loss"] > 0 < first.gradient_norm
    assert step.read().means == {"loss": 0, "accuracy": 0}


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    """With batch norm in eval mode the cut of the batch cannot matter."""
    (model_a, step_a), (model_b, step_b) = build(), build()
    model_a.eval(), model_b.eval()
    whole = batch(0, 8)
    halves = [
        Batch(whole.images[s], whole.labels[s], whole.index[s], whole.flips[s], whole.turns[s])
        for s in (slice(0, 4), slice(4, 8))
    ]
    step_a([whole])
    step_b(halves)
    for a, b in zip(model_a.parameters(), model_b.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert step_a.read().means["loss"] == pytest.approx(step_b.read().means["loss"], rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nothing_after_a_non_finite_step_changes_a_parameter(precision: str, poison: float) -> None:
    model, step = build(precision)
    for first in (0, 8):
        step([batch(first, 8)])
    good = everything(model, step)
    bias = dict(model.named_parameters())["fc.bias" if precision == "fp16" else "head.fc.bias"]
    with torch.no_grad():
        original = bias.clone()
        bias[0] = poison
    step([batch(16, 8)])
    with torch.no_grad():
        bias.copy_(original)
    step([batch(24, 8)])  # finite again, but the flag is sticky
    after = everything(model, step)
    assert all(torch.equal(good[name], after[name]) for name in good)
    assert step.read().finite_steps == 2


def test_an_overflow_in_the_first_step_leaves_momentum_at_rest() -> None:
    """A scaler begins too high; torch would leave buffers that it skips unwritten, for good."""
    model, step = build("fp16")
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-120)
    before = everything(model, step)
    step([batch(0, 8)])
    after = everything(model, step)
    assert any("momentum" in name for name in after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    step([batch(8, 8)])
    later = everything(model, step)
    assert all(value.isfinite().all() for value in later.values())
    assert not torch.equal(later["fc.weight"], after["fc.weight"])


def test_infinite_gradient_with_a_finite_loss_is_caught() -> None:
    model, step = build()
    good = copy.deepcopy(everything(model, step))
    handle = model.head.fc.weight.register_hook(lambda gradient: gradient * float("inf"))
    step([batch(0, 8)])
    handle.remove()
    after = everything(model, step)
    assert all(torch.equal(good[name], after[name]) for name in good)
    assert step.read().finite_steps == 0


def test_momentum_keeps_the_memory_format() -> None:
    model, step = build()
    step([batch(0, 8)])
    buffer = optimizer_tensors(step.optimizer, model)[
        "backbone.layer1.0.conv1.weight.momentum_buffer"
    ]
    assert buffer.is_contiguous(memory_format=torch.channels_last)
