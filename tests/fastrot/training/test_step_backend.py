"""Every implementation of a step trains the same; which one runs, and what it says if it cannot."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from fastrot.config import Config, load_config
from fastrot.data.loader import Batch
from fastrot.distributed.world import World
from fastrot.errors import UsageError
from fastrot.kernels.rotate.op import rotate_views
from fastrot.kernels.rotate.reference import normalisation_table
from fastrot.models.backbones import build_model
from fastrot.models.layers import use_batch_norm
from fastrot.training.optim import build_optimizer, set_learning_rate
from fastrot.training.rotation import RotationTask
from fastrot.training.step import TrainStep
from fastrot.training.step_backend import StepBackend, choose_backend, wrap_model
from tests.fastrot.training.layer_errors import assert_at_most_twice_the_error

CPU = torch.device("cpu")
GPU = torch.device("cuda")
SIDE = 16


def photos(seed: int, count: int = 8, side: int = SIDE) -> Batch:
    """Smooth pictures, brighter to the bottom: something to learn."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(low, size=(side, side), mode="bilinear")
    shaded = smooth.permute(0, 2, 3, 1) * torch.linspace(0.3, 1, side)[None, :, None, None]
    return Batch(
        images=shaded.mul(255).byte(),
        labels=torch.zeros(count, dtype=torch.int64),
        index=torch.arange(count),
        flips=torch.zeros(count, dtype=torch.bool),
        turns=torch.arange(4, dtype=torch.uint8).repeat(count, 1),
    )


def losses(backend: StepBackend, config: Config, *, seed: int, steps: int) -> torch.Tensor:
    """Loss of each step, of shape (steps,)."""
    model = build_model(config.model, seed=seed).to(memory_format=torch.channels_last)
    task = RotationTask(config, CPU, None, channels=backend.channels)
    optimizer = build_optimizer(model, config.optim)
    set_learning_rate(optimizer, config.optim.learning_rate)
    wrapped = wrap_model(
        model, backend, world=World(), device=CPU, sync_bn=False, static_graph=True, say=print
    )
    step = TrainStep(wrapped, optimizer, task, device=CPU)
    curve = []
    for number in range(steps):
        step([photos(1000 * number + 7)])
        curve.append(step.read().means["loss"])
    return torch.tensor(curve)


EAGER = StepBackend("eager", "torch", False, "")
FUSED = StepBackend("fused", "fused", False, "")
COMPILE = StepBackend("compile", "torch", False, "")


CURVE = load_config(
    "digits", ["model.name=resnet18", "model.width=8", "optim.learning_rate=0.0005"]
)


BACKENDS = pytest.mark.parametrize("backend", [FUSED, COMPILE], ids=lambda backend: backend.step)


@BACKENDS
def test_every_step_begins_as_the_eager_one(backend: StepBackend) -> None:
    eager, curve = (losses(each, CURVE, seed=0, steps=30) for each in (EAGER, backend))
    assert (curve - eager)[:10].abs().max() < 1e-4
    assert (curve - eager).abs().mean() < 0.03
    assert curve[-5:].mean() < 0.98 * curve[:5].mean()


@pytest.fixture(scope="module")
def eager() -> list[torch.Tensor]:
    """Losses of 500 steps from three seeds."""
    return [losses(EAGER, CURVE, seed=seed, steps=500) for seed in (0, 1, 2)]


@pytest.mark.chaos
@BACKENDS
def test_every_step_trains_as_the_eager_one(
    backend: StepBackend, eager: list[torch.Tensor]
) -> None:
    """Equal at first; then rounding grows, and stays far below what another seed changes."""
    curve = losses(backend, CURVE, seed=0, steps=500)
    assert (curve - eager[0])[:10].abs().max() < 1e-4
    assert (curve - eager[0])[:200].abs().mean() < 0.03
    means, other = curve.view(10, 50).mean(1), [each.view(10, 50).mean(1) for each in eager]
    spread = max(float((a - b).abs().max()) for a in other for b in other)
    assert (means - other[0]).abs().max() < 0.25 * spread
    assert means[-1] < 0.1 * means[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_of_the_fused_step_are_as_exact_as_eager_ones(seed: int) -> None:
    """In bfloat16, per layer: at most twice the distance of eager autocast from float64."""
    config = load_config("digits", ["model.name=resnet18", "model.width=16"])
    batch = photos(seed, side=32)

    def gradients(engine: str, channels: int) -> dict[str, torch.Tensor]:
        model = build_model(config.model, seed=seed).to(memory_format=torch.channels_last)
        use_batch_norm(model, engine)
        task = RotationTask(config, CPU, torch.bfloat16, channels=channels)
        task.predict(model, task.inputs(batch)).loss.backward()
        return {name: p.grad.double() for name, p in model.named_parameters()}

    exact_model = build_model(config.model, seed=seed).double()
    inputs = RotationTask(config, CPU, None).inputs(batch)
    table = normalisation_table(config.data.mean, config.data.std, torch.bfloat16)
    logits = exact_model(rotate_views(*inputs, table).double())
    torch.nn.functional.cross_entropy(logits, inputs.turns.flatten().long()).backward()
    exact = {name: p.grad for name, p in exact_model.named_parameters()}
    eager, fused = gradients("torch", 3), gradients("fused", 4)
    assert_at_most_twice_the_error(exact, fused, eager)


# --- the choice -----------------------------------------------------------------------------


def config_with(*settings: str) -> Config:
    return load_config("digits", ["train.precision=fp32", *settings])


def settled(backend: StepBackend) -> tuple[str, str, bool, int]:
    return backend.step, backend.batchnorm, backend.graph, backend.channels


def test_a_cpu_trains_eagerly_unless_told_otherwise() -> None:
    backend = choose_backend(config_with(), World(), CPU)
    assert settled(backend) == (
        "eager",
        "torch",
        False,
        3,
    )
    assert backend.describe().startswith("step: eager (batch norm: torch): no GPU; compile would")
    backend = choose_backend(config_with("train.step=fused"), World(), CPU)
    assert settled(backend) == (
        "fused",
        "fused",
        False,
        4,
    )
    backend = choose_backend(
        config_with("train.batchnorm=fused", "train.cuda_graph=true"), World(), CPU
    )
    assert (backend.step, backend.batchnorm, backend.graph) == ("eager", "fused", False)
    assert (
        "batch_norm uses the slow reference implementation" in backend.why
        and "no CUDA graph on a CPU" in backend.why
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), ("fused", "fused", True)),
        (("train.cuda_graph=false",), ("fused", "fused", False)),
        (("train.step=eager",), ("eager", "torch", False)),
        (("train.step=eager", "train.cuda_graph=true"), ("eager", "torch", True)),
        (("train.step=compile",), ("compile", "torch", True)),
        (("train.batchnorm=torch",), ("fused", "torch", True)),
    ],
)
def test_a_gpu_runs_the_fused_step_as_a_graph(
    settings: Sequence[str], expected: tuple[str, str, bool]
) -> None:
    backend = choose_backend(config_with(*settings), World(), GPU)
    assert (backend.step, backend.batchnorm, backend.graph) == expected


def test_several_ranks_have_no_graph_yet() -> None:
    backend = choose_backend(config_with(), World(rank=0, size=2), GPU)
    assert backend.step == "fused" and not backend.graph
    assert "no CUDA graph with several ranks" in backend.describe()


def test_kernels_that_are_forced_to_the_reference_are_not_the_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTROT_KERNELS", "reference")
    backend = choose_backend(config_with(), World(), GPU)
    assert backend.step == "eager" and "forced by FASTROT_KERNELS" in backend.why


def test_kernels_that_cannot_run_are_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTROT_KERNELS", "triton")
    with pytest.raises(UsageError, match="FASTROT_KERNELS=triton: rotate_views cannot run it"):
        choose_backend(config_with("train.step=fused"), World(), CPU)


def test_a_step_that_cannot_run_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="apex is for fp16 on one GPU, not fp32 on cpu"):
        choose_backend(config_with("train.batchnorm=apex"), World(), CPU)
    config = load_config("digits", ["train.precision=fp16", "train.batchnorm=apex"])
    with pytest.raises(UsageError, match="build apex from its source with APEX_CPP_EXT=1"):
        choose_backend(config, World(), GPU)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler on a CPU.*apt-get install g"):
        choose_backend(config_with("train.step=compile"), World(), CPU)
