"""The roofline: layers from a real run, FLOPs as torch counts them, bounds of the reference."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastrot.benchmarks.common.kernel_work import CONVS, LEVELS, kernels
from fastrot.benchmarks.common.layer_shapes import trace
from fastrot.benchmarks.common.roofline import REFERENCE, bounds, layers_of, step_flops
from fastrot.config import ModelConfig
from fastrot.models.backbones import build_model

# Section 5 of reference/performance.md: ResNet-50, 224 px, a batch of 256.
PUBLISHED = {
    "a0": (471, 8214),
    "a2": (365, 10293),
    "c": (309, 12021),
    "b": (229, 16090),
    CONVS: (125, 24164),
}


def _resnet50(resolution: int, levels: list[str]):
    layers = layers_of(ModelConfig(name="resnet50"), resolution)
    return bounds(layers, **REFERENCE, batch=256, levels=levels)


def test_the_reference_table_is_reproduced() -> None:
    found = _resnet50(224, list(PUBLISHED))
    for level, (megabytes, rate) in PUBLISHED.items():
        assert found[level].views_per_second == pytest.approx(rate, rel=0.015), level
        # Both passes of the pools and both batch norms of a shortcut are counted here: up to 5 MB.
        assert found[level].nbytes / 1e6 == pytest.approx(megabytes, rel=0.03), level


@pytest.mark.parametrize(
    ("resolution", "rates"),
    [(128, (31099, 36240, 48250)), (160, (20047, 23389, 31228)), (192, (13976, 16317, 21819))],
)
def test_other_sizes_of_the_reference(resolution: int, rates: tuple[int, ...]) -> None:
    found = _resnet50(resolution, ["a2", "c", "b"])
    measured = [bound.views_per_second for bound in found.values()]
    assert measured == pytest.approx(rates, rel=0.015)


def test_flops_of_the_reference() -> None:
    layers = layers_of(ModelConfig(name="resnet50"), 224)
    assert sum(layer.flops for layer in layers) / 1e9 == pytest.approx(8.174, abs=1e-3)
    assert step_flops(layers) / 1e9 == pytest.approx(24.287, abs=1e-3)
    convolutions = [layer for layer in layers if layer.kind == "conv"]
    assert sum(layer.size_out for layer in convolutions) / 1e6 == pytest.approx(11.11, abs=0.01)


@pytest.mark.parametrize(
    ("name", "resolution"),
    [("resnet18", 32), ("resnet34", 32), ("resnet50", 96), ("rotnet_nin", 32), ("rotnet_nin", 96)],
)
def test_flops_are_those_that_torch_counts(name: str, resolution: int) -> None:
    config = ModelConfig(name=name, width=16)
    with torch.device("meta"):
        model = build_model(config, seed=0).train()
        views = torch.empty(3, 3, resolution, resolution)
    with FlopCounterMode(display=False) as counter:
        model(views).sum().backward()
    assert 3 * step_flops(layers_of(config, resolution)) == counter.get_total_flops()


@pytest.mark.parametrize("name", ["resnet18", "resnet101", "rotnet_nin"])
def test_more_fusion_is_never_slower(name: str) -> None:
    layers = layers_of(ModelConfig(name=name, width=32), 64)
    order = ["a0", "a2", "c", "b", CONVS]
    found = bounds(layers, **REFERENCE, batch=64, levels=order)
    sizes = {level: bound.nbytes for level, bound in found.items()}
    for more, less in pairwise(order):
        assert sizes[more] > sizes[less], (more, less)
        assert found[more].seconds > found[less].seconds, (more, less)
    assert found["a0"].flops == pytest.approx(found["b"].flops) == step_flops(layers)


def test_every_level_multiplies_alike_and_names_its_kernels() -> None:
    layers = layers_of(ModelConfig(name="resnet18", width=16), 64)
    names = {layer.name for layer in layers}
    for level in LEVELS:
        works = kernels(layers, level, batch=8)
        assert {work.layer for work in works} <= {*names, ""}
        assert sum(work.flops for work in works) == step_flops(layers)
        assert all(work.nbytes > 0 for work in works)


def test_a_layer_knows_what_it_is() -> None:
    layers = {layer.name: layer for layer in layers_of(ModelConfig(name="resnet50"), 224)}
    first = layers["conv1"]
    assert (first.kernel, first.stride, first.shape_out) == (7, 2, (64, 112, 112))
    assert layers["bn1"].relu and not layers["bn1"].residual and layers["bn1"].stage == "stem"
    end, shortcut = layers["layer2.0.bn3"], layers["layer2.0.downsample.1"]
    assert end.relu and end.residual and not shortcut.relu and not shortcut.residual
    skipping = layers["layer2.0.downsample.0"]
    assert skipping.touched == skipping.size_in // 4
    assert layers["head.fc"].multiplications == 2048 * 4


def test_the_batch_spreads_the_weights_only() -> None:
    layers = layers_of(ModelConfig(name="resnet50"), 64)
    few, many = (bounds(layers, **REFERENCE, batch=n, levels=["a2"])["a2"] for n in (8, 1 << 20))
    weights = sum(layer.weights for layer in layers)
    # the update's 32 bytes, and 2 in each of three kernels of (nearly) every weight
    assert few.nbytes - many.nbytes == pytest.approx(weights * 38 / 8, rel=0.01)


def test_an_unknown_operation_is_named() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sigmoid())
    with pytest.raises(ValueError, match=r"1: no accounting for the operation .*Sigmoid"):
        trace(model, (3, 8, 8))

    class Squared(nn.Module):
        def forward(self, views: torch.Tensor) -> torch.Tensor:
            return torch.square(views)

    with pytest.raises(ValueError, match=r"square: no accounting for the operation .*square"):
        trace(Squared(), (3, 8, 8))
