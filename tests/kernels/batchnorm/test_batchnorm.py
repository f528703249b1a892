"""Batch normalisation, residual and ReLU at once: every implementation, beside torch in float64."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from fastrot.kernels import dispatch
from fastrot.kernels.batchnorm import op, reference
from fastrot.kernels.batchnorm.op import batch_norm

HALVES = [torch.float16, torch.bfloat16]
# Rows and channels: a tile's borders, one row, one channel, no multiple of 8.
SHAPES = [(1, 1), (2, 3), (31, 8), (33, 65), (64, 64), (100, 130), (257, 16)]
# What a dtype changes is the rounding at the end, whatever the shape.
CASES = [(*shape, torch.float32) for shape in SHAPES]
CASES += [(33, 65, torch.float16), (100, 130, torch.bfloat16)]


# Triton's interpreter works only where it was chosen before Triton was imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PLACES = {"reference": "cpu"}
if INTERPRETED or torch.cuda.is_available():
    PLACES["triton"] = "cpu" if INTERPRETED else "cuda"


@pytest.fixture(params=PLACES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force one implementation after the other; the device that its inputs must be on."""
    monkeypatch.setenv(dispatch.VARIABLE, request.param)
    return PLACES[request.param]


@pytest.mark.skipif("triton" in PLACES, reason="all tests here run Triton themselves")
def test_all_of_this_under_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        __file__,
        "-k",
        "triton and not interpreter",
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout and " passed" in done.stdout


def matrix(rows: int, channels: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 100 * rows + channels)
    spread = torch.linspace(0.1, 3, channels)
    centre = torch.linspace(-2, 2, channels)
    return (torch.randn(rows, channels, generator=generator) * spread + centre).to(dtype)


def vector(channels: int, seed: int) -> torch.Tensor:
    return torch.randn(channels, generator=torch.Generator().manual_seed(seed))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to one unit in the last place of the dtype, and float32's own error in a sum."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    tolerance = max(torch.finfo(actual.dtype).eps, 3e-6)
    scale = float(expected.double().abs().max()) or 1.0
    torch.testing.assert_close(
        actual.double().cpu(), expected.double().cpu(), rtol=tolerance, atol=tolerance * scale
    )


@pytest.mark.skipif("triton" not in PLACES, reason="runs in the test above")
@pytest.mark.parametrize(("rows", "channels", "dtype"), CASES)
def test_every_triton_kernel_is_its_reference(rows: int, channels: int, dtype: torch.dtype) -> None:
    kernel = importlib.import_module("fastrot.kernels.batchnorm.triton_kernel")
    where = PLACES["triton"]
    x, dy, residual = (matrix(rows, channels, dtype, seed) for seed in (0, 1, 2))
    bits = torch.empty(rows, -(-channels // 8), dtype=torch.uint8)

    def run(module: ModuleType, place: str) -> list[torch.Tensor]:
        a, b, c = (t.to(place) for t in (x, dy, residual))
        weight, bias, mean, shift = (vector(channels, seed).to(place) for seed in (3, 4, 5, 6))
        rstd, count = vector(channels, 7).abs().to(place), torch.full_like(mean, 7 * rows)
        given = torch.stack([mean, rstd, weight, shift, count])
        parts = module.moments(a)
        results = [module.merge(parts)]
        if rows > 1:  # no unbiased variance of one row
            running = [mean.clone(), rstd.clone()]
            results += [module.finish(parts, weight, bias, *running, 0.1, 1e-3), *running]
        for mask in (bits.to(place), None):
            for added in (c, None):
                y, dx, plain, frozen = (torch.empty_like(a) for _ in range(4))
                dadded = None if added is None else torch.empty_like(a)
                if mask is not None:
                    mask.fill_(0xFF)
                module.normalise(a, given, added, mask is not None, y, mask)
                module.normalise(a, given, added, True, plain, None)
                module.normalise_frozen(
                    a, weight, bias, mean, rstd, 1e-3, added, mask is not None, frozen
                )
                total, projected = torch.full((2, channels), torch.nan, device=place)
                sums = module.gradient_sums(b, a, mask, given)
                bent = module.coefficients(sums, given, total, projected)
                module.gradient(b, a, mask, given, bent, dx, dadded)
                results += [y, plain, frozen, total, projected, bent, dx]
                results += [t.clone() for t in (mask, dadded) if t is not None]
        return results

    for ours, expected in zip(run(kernel, where), run(reference, "cpu"), strict=True):
        if expected.dtype == torch.uint8:
            assert torch.equal(ours.cpu(), expected), "bits of the mask"
        else:
            close(ours, expected)


@pytest.mark.skipif("triton" not in PLACES, reason="runs in the test above")
@pytest.mark.parametrize("rows", [64 * 7 + 5, 64 * 6, 64 * 2 + 1])
def test_triton_programs_take_several_steps_and_merge_many_parts(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    kernel = importlib.import_module("fastrot.kernels.batchnorm.triton_kernel")
    for name in ("_MOMENTS_PROGRAMS", "_SUMS_PROGRAMS"):
        monkeypatch.setattr(kernel, name, 6)  # 3 for each piece of the channels
    monkeypatch.setattr(kernel, "_PARTS", 2)
    where, channels = PLACES["triton"], 130
    x, dy = (matrix(rows, channels, torch.float32, seed).to(where) for seed in (0, 1))
    x[0] = 1000  # far from all others, in the row that is the first mean
    mask = reference.pack(matrix(rows, channels, torch.float32, seed=2) > 0).to(where)
    parts, expected = kernel.moments(x), reference.moments(x)
    assert len(parts) == 3
    close(kernel.merge(parts), reference.merge(expected))
    one, running = torch.ones(channels, device=where), torch.zeros(2, channels, device=where)
    statistics = kernel.finish(parts, one, one, running[0], running[1], 1.0, 1e-5)
    wanted = torch.zeros_like(running)
    close(statistics, reference.finish(expected, one, one, wanted[0], wanted[1], 1.0, 1e-5))
    close(running, wanted)
    ours, theirs = torch.empty(2, 2, channels, device=where)
    bent = kernel.coefficients(kernel.gradient_sums(dy, x, mask, statistics), statistics, *ours)
    sums = reference.gradient_sums(dy, x, mask, statistics)
    close(bent, reference.coefficients(sums, statistics, *theirs))
    close(ours, theirs)


@pytest.mark.skipif("triton" not in PLACES, reason="runs in the test above")
def test_triton_launches_three_kernels_a_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = importlib.import_module("fastrot.kernels.batchnorm.triton_kernel")
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    launched: list[str] = []

    class Counting:
        def __init__(self, name: str) -> None:
            self._name, self._kernel = name, getattr(kernel, name)

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            launched.append(self._name)
            return self._kernel[grid]

    for name in [name for name in vars(kernel) if name.endswith("_kernel")]:
        monkeypatch.setattr(kernel, name, Counting(name))
    x = torch.randn(2, 8, 3, 3, device=PLACES["triton"], requires_grad=True)
    one, zero = torch.ones(8, device=x.device), torch.zeros(8, device=x.device)
    batch_norm(x, one, zero, zero.clone(), one.clone(), training=False)
    assert launched == ["normalise_kernel"]
    launched.clear()
    y = batch_norm(x, one, zero, zero.clone(), one.clone(), residual=x)
    assert launched == ["moments_kernel", "finish_kernel", "normalise_kernel"]
    launched.clear()
    y.sum().backward()
    assert launched == ["sums_kernel", "coefficients_kernel", "gradient_kernel"]


def test_bits_are_packed_and_unpacked() -> None:
    passed = matrix(5, 19, torch.float32) > 0
    packed = reference.pack(passed)
    assert packed.shape == (5, 3) and torch.equal(reference.unpack(packed, 19), passed)
    assert int(packed[2, 1]) == sum(2**k for k in range(8) if passed[2, 8 + k])


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_forward_gradients_and_running_statistics_are_those_of_torch(
    device: str, relu: bool, with_residual: bool
) -> None:
    images, channels, side = 3, 20, 5
    x = matrix(images * side * side, channels, torch.float32).view(images, side, side, channels)
    x = x.permute(0, 3, 1, 2)
    residual = torch.randn_like(x, memory_format=torch.channels_last) if with_residual else None
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    layer = nn.BatchNorm2d(channels).double()
    with torch.no_grad():
        layer.weight.copy_(vector(channels, 2))
        layer.bias.copy_(vector(channels, 3))

    wide = x.double().requires_grad_()
    added = None if residual is None else residual.double().requires_grad_()
    expected = layer(wide)
    expected = expected if added is None else expected + added
    expected = expected.relu() if relu else expected
    expected.backward(dy.double())

    ours = x.to(device).requires_grad_()
    ours_added = None if residual is None else residual.to(device).requires_grad_()
    weight, bias = (p.detach().float().to(device).requires_grad_() for p in layer.parameters())
    mean, variance = torch.zeros(channels, device=device), torch.ones(channels, device=device)
    y = batch_norm(ours, weight, bias, mean, variance, residual=ours_added, relu=relu)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.backward(dy.to(device))
    pairs = [(y, expected), (ours.grad, wide.grad), (weight.grad, layer.weight.grad)]
    pairs += [(bias.grad, layer.bias.grad), (mean, layer.running_mean)]
    pairs += [(variance, layer.running_var)]
    if added is not None and ours_added is not None:
        pairs.append((ours_added.grad, added.grad))
    for actual, wanted in pairs:
        assert actual is not None and wanted is not None
        close(actual.detach(), wanted.detach().float())

    layer.eval()
    wanted = layer(x.double())
    wanted = wanted if residual is None else wanted + residual.double()
    with torch.no_grad():
        frozen = batch_norm(
            x.to(device), weight, bias, mean, variance,
            residual=None if residual is None else residual.to(device), relu=relu, training=False,
        )  # fmt: skip
    close(frozen, (wanted.relu() if relu else wanted).detach().float())


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_rounds_once(device: str, dtype: torch.dtype) -> None:
    x = matrix(60, 24, dtype).view(15, 2, 2, 24).permute(0, 3, 1, 2)
    residual = matrix(60, 24, dtype, seed=9).view(15, 2, 2, 24).permute(0, 3, 1, 2)
    weight, bias = vector(24, 2), vector(24, 3)
    y = batch_norm(
        x.to(device), weight.to(device), bias.to(device), torch.zeros(24, device=device),
        torch.ones(24, device=device), residual=residual.to(device),
    )  # fmt: skip
    exact = nn.functional.batch_norm(x.double(), None, None, weight.double(), bias.double(), True)
    exact = (exact + residual.double()).relu()
    # Half a unit in the last place is a rounding; the interpreter truncates bfloat16.
    unit = torch.finfo(dtype).eps * (1.0 if dtype == torch.bfloat16 else 0.51)
    assert bool(((y.cpu().double() - exact).abs() <= unit * exact.abs() + 1e-5).all())


def test_a_mean_far_from_zero_costs_no_variance(device: str) -> None:
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) + 3000
    mean, variance = torch.zeros(3, device=device), torch.ones(3, device=device)
    batch_norm(
        x.view(40, 10, 10, 3).permute(0, 3, 1, 2).to(device),
        torch.ones(3, device=device), torch.zeros(3, device=device), mean, variance, momentum=1.0,
    )  # fmt: skip
    torch.testing.assert_close(variance.cpu().double(), x.double().var(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_relu_hides_no_nan(device: str, training: bool) -> None:
    """Or training would continue with zeros, and the loss would stay finite."""
    x = matrix(12, 8, torch.float32).view(3, 2, 2, 8).permute(0, 3, 1, 2).to(device).clone()
    x[1, 3, 0, 1] = torch.nan
    ones, zeros = torch.ones(8, device=device), torch.zeros(8, device=device)
    y = batch_norm(x, ones, zeros, zeros.clone(), ones.clone(), training=training)
    assert y[1, 3, 0, 1].isnan()
    assert y[:, 3].isnan().all() == training
    assert y[:, :3].isfinite().all() and y[:, 4:].isfinite().all()


def test_a_part_of_the_channels_of_a_batch_is_taken_as_it_is(device: str) -> None:
    whole = matrix(18, 16, torch.float32).view(2, 3, 3, 16).permute(0, 3, 1, 2).to(device)
    ones, zeros = torch.ones(5, device=device), torch.zeros(5, device=device)
    for part in (whole[:, 2:7], whole[:, 2:7].contiguous(), whole[:, 2:7].transpose(2, 3)):
        y = batch_norm(part, ones, zeros, zeros.clone(), ones.clone(), residual=part)
        exact = nn.functional.batch_norm(part.double(), None, None, training=True) + part.double()
        close(y, exact.relu().float())


def test_ranks_with_batches_of_different_sizes_act_as_one() -> None:
    script = Path(__file__).with_name("rank_batchnorm.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("as one") == 2


def test_a_gradient_through_running_statistics_is_refused() -> None:
    x = torch.randn(2, 4, 1, 1, requires_grad=True)
    four = torch.ones(4)
    y = batch_norm(x, four, four, four.clone(), four.clone(), training=False)
    with pytest.raises(RuntimeError, match="batch_norm_frozen"):
        y.sum().backward()


def test_the_operations_fit_their_descriptions() -> None:
    weight, bias = vector(5, 0), vector(5, 1)
    x, residual = (matrix(6, 5, torch.float32, seed) for seed in (0, 1))
    running = [torch.zeros(5), torch.ones(5)]
    torch.library.opcheck(op._statistics, (x, weight, bias, *running, 0.1, 1e-5, ""))
    torch.library.opcheck(op._frozen, (x, weight, bias, *running, residual, True, 1e-5))
    statistics = op._statistics(x, weight, bias, *running, 0.1, 1e-5, "")
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    for arguments in ((residual.requires_grad_(), True), (None, False)):
        torch.library.opcheck(op._forward, (*leaves, statistics, *arguments, ""))


def test_a_layer_used_twice_compiles_to_the_same_results() -> None:
    x = matrix(18, 5, torch.float32).view(2, 3, 3, 5).permute(0, 3, 1, 2)

    def run(compiled: bool) -> list[torch.Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x, vector(5, 0), vector(5, 1))]
        running = [torch.zeros(5), torch.ones(5)]

        def twice(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            y = batch_norm(x, weight, bias, *running)
            return batch_norm(y, weight, bias, *running, residual=y)

        function = torch.compile(twice, backend="aot_eager", fullgraph=True) if compiled else twice
        y = function(*leaves)
        y.square().sum().backward()
        return [y.detach(), *running, *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    for ours, expected in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(ours, expected)


def test_bad_arguments_are_named() -> None:
    x = torch.zeros(2, 4, 1, 1)
    four = torch.ones(4)
    with pytest.raises(TypeError, match=r"x is torch.int64 but must be float32"):
        batch_norm(x.long(), four, four, four, four)
    with pytest.raises(ValueError, match=r"bias of shape \(3,\) must be \(4,\), one per channel"):
        batch_norm(x, four, torch.ones(3), four, four)
    with pytest.raises(TypeError, match=r"weight is torch.float16 but must be float32"):
        batch_norm(x, four.half(), four, four, four)
    with pytest.raises(TypeError, match=r"residual is torch.float16 but must be torch.float32"):
        batch_norm(x, four, four, four, four, residual=x.half())
    with pytest.raises(ValueError, match=r"residual of shape \(1, 4, 1, 1\)"):
        batch_norm(x, four, four, four, four, residual=x[:1])
    with pytest.raises(ValueError, match="has one value per channel: no variance"):
        batch_norm(x[:1], four, four, four, four)
    with pytest.raises(ValueError, match=r"must be \(N, C, H, W\)"):
        batch_norm(x[0], four, four, four, four)
