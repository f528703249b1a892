"""A recorded step does what the step does. Only a GPU records."""

from __future__ import annotations

import pytest
import torch

from fastrot.config import Config, load_config
from fastrot.data.loader import Batch
from fastrot.distributed.world import World
from fastrot.models.backbones import RotationModel, build_model
from fastrot.models.layers import Engine
from fastrot.models.precision import autocast_dtype
from fastrot.training.optim import build_optimizer, keep_rate_on_device, set_learning_rate
from fastrot.training.rotation import RotationTask
from fastrot.training.step import TrainStep
from fastrot.training.step_backend import StepBackend, StepName, wrap_model
from tests.fastrot.training.layer_errors import assert_at_most_twice_the_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

STEPS = 12


def batch(seed: int, count: int = 16, side: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(low, size=(side, side), mode="bilinear")
    shaded = smooth.permute(0, 2, 3, 1) * torch.linspace(0.5, 1, side)[None, :, None, None]
    images = shaded.mul(255).byte().cuda()
    return Batch(
        images=images,
        labels=torch.zeros(count, dtype=torch.int64, device="cuda"),
        index=torch.arange(count),
        flips=torch.rand(count, generator=generator).lt(0.5).cuda(),
        turns=torch.arange(4, dtype=torch.uint8).repeat(count, 1).cuda(),
    )


def build(
    backend: StepBackend, config: Config, *, seed: int = 0
) -> tuple[RotationModel, TrainStep]:
    device = torch.device("cuda", 0)
    dtype = autocast_dtype(config.train.precision)
    model = build_model(config.model, seed=seed).to(device, memory_format=torch.channels_last)
    task = RotationTask(config, device, dtype, channels=backend.channels)
    optimizer = build_optimizer(model, config.optim)
    wrapped = wrap_model(
        model, backend, world=World(), device=device, sync_bn=False, static_graph=True, say=print
    )
    if backend.graph:
        keep_rate_on_device(optimizer, device)
    step = TrainStep(
        wrapped,
        optimizer,
        task,
        device=device,
        scaler=torch.amp.GradScaler("cuda") if dtype == torch.float16 else None,
        graph=backend.graph,
    )
    return model, step


def curve(
    backend: StepBackend, config: Config, *, passes: int = 1
) -> tuple[RotationModel, list[float]]:
    torch.backends.cudnn.deterministic = True
    model, step = build(backend, config)
    losses = []
    for number in range(STEPS):
        set_learning_rate(step.optimizer, 0.001 * (number + 1))
        step([batch(passes * number + k) for k in range(passes)])
        losses.append(step.read().means["loss"])
    assert step.read().finite_steps == STEPS
    return model, losses


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("step", "engine"), [("eager", "torch"), ("fused", "fused"), ("compile", "torch")]
)
def test_a_replay_is_the_step(step: StepName, engine: Engine, precision: str) -> None:
    """Every step trains: those before the recording, the recorded one, and all replays."""
    settings = ["model.name=resnet18", "model.stem=imagenet", f"train.precision={precision}"]
    config = load_config("digits", settings)
    model, losses = curve(StepBackend(step, engine, True, ""), config)
    plain, expected = curve(StepBackend(step, engine, False, ""), config)
    assert losses == pytest.approx(expected, abs=1e-3)
    state, wanted = model.state_dict(), plain.state_dict()
    assert int(state["backbone.bn1.num_batches_tracked"]) == STEPS
    for name in ("backbone.bn1.running_mean", "head.fc.weight"):
        torch.testing.assert_close(state[name], wanted[name], rtol=2e-2, atol=2e-3)


def test_accumulated_passes_are_recorded_together() -> None:
    config = load_config("digits", ["model.name=resnet18", "train.precision=bf16"])
    _, losses = curve(StepBackend("fused", "fused", True, ""), config, passes=2)
    _, expected = curve(StepBackend("fused", "fused", False, ""), config, passes=2)
    assert losses == pytest.approx(expected, abs=1e-3)


def test_a_nan_is_sticky_in_a_replay() -> None:
    config = load_config("digits", ["model.name=resnet18", "train.precision=bf16"])
    model, step = build(StepBackend("fused", "fused", True, ""), config)
    for number in range(8):
        step([batch(number)])
    good = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        original = model.head.fc.bias.clone()
        model.head.fc.bias.fill_(float("nan"))
        step([batch(8)])
        model.head.fc.bias.copy_(original)
    step([batch(9)])
    assert step.read().finite_steps == 8
    assert all(torch.equal(p, good[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_are_as_exact_as_eager_ones(seed: int) -> None:
    """Per layer: at most twice the distance of eager autocast from float64."""
    from fastrot.kernels.rotate.op import rotate_views
    from fastrot.kernels.rotate.reference import normalisation_table

    config = load_config(
        "digits", ["model.name=resnet50", "model.stem=imagenet", "train.precision=bf16"]
    )
    device, images = torch.device("cuda", 0), batch(seed)

    def gradients(backend: StepBackend) -> dict[str, torch.Tensor]:
        model = build_model(config.model, seed=seed).to(device, memory_format=torch.channels_last)
        wrap_model(
            model,
            backend,
            world=World(),
            device=device,
            sync_bn=False,
            static_graph=True,
            say=print,
        )
        task = RotationTask(config, device, torch.bfloat16, channels=backend.channels)
        task.predict(model, task.inputs(images)).loss.backward()
        return {name: p.grad.double() for name, p in model.named_parameters()}

    exact_model = build_model(config.model, seed=seed).to(device).double()
    inputs = RotationTask(config, device, None).inputs(images)
    table = normalisation_table(config.data.mean, config.data.std, torch.bfloat16).to(device)
    logits = exact_model(rotate_views(*inputs, table).double())
    torch.nn.functional.cross_entropy(logits, inputs.turns.flatten().long()).backward()
    eager = gradients(StepBackend("eager", "torch", False, ""))
    fused = gradients(StepBackend("fused", "fused", False, ""))
    exact = {name: p.grad for name, p in exact_model.named_parameters()}
    assert_at_most_twice_the_error(exact, fused, eager)


@pytest.mark.slow
def test_500_steps_lie_within_the_spread_of_three_seeds() -> None:
    """Eager, compiled and fused, as graphs: the curves of one seed are closer than other seeds'."""
    settings = ["model.name=resnet50", "model.stem=imagenet", "train.precision=bf16"]
    config = load_config("digits", [*settings, "optim.learning_rate=0.02"])

    def windows(step: StepName, engine: Engine, seed: int) -> torch.Tensor:
        """Mean loss of every 50 steps."""
        _, trained = build(StepBackend(step, engine, step != "eager", ""), config, seed=seed)
        losses = []
        for number in range(500):
            trained([batch(number % 100, count=32, side=96)])
            if number % 50 == 49:
                losses.append(trained.read().means["loss"])
        return torch.tensor(losses)

    eager = [windows("eager", "torch", seed) for seed in (0, 1, 2)]
    spread = max(float((a - b).abs().max()) for a in eager for b in eager)
    for step, engine in (("compile", "torch"), ("fused", "fused")):
        curve = windows(step, engine, 0)
        assert (curve - eager[0]).abs().max() <= spread, (step, curve, eager)
        assert curve[-1] < 0.7 * curve[0]
