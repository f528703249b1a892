"""The published windows, of torch's own pooling, and what is done where they do not apply."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastrot.config import ModelConfig
from fastrot.features.pooling import layer_info, layer_infos, pool
from fastrot.models.backbones import build_model

# Stage: channels and map of ResNet-50 at 224 px; window, stride, padding, grid, values. Of
# MMSelfSup's configs/benchmarks/classification (pool_type "specified") and of FAIR's benchmark.
PUBLISHED = {
    "stem": (64, 112, 10, 10, 4, 12, 9216),
    "layer1": (256, 56, 16, 8, 0, 6, 9216),
    "layer2": (512, 28, 13, 5, 0, 4, 8192),
    "layer3": (1024, 14, 8, 3, 0, 3, 9216),
    "layer4": (2048, 7, 6, 1, 0, 2, 8192),
}


@pytest.mark.parametrize("stage", PUBLISHED)
def test_published_windows(stage):
    channels, side, kernel, stride, padding, grid, dim = PUBLISHED[stage]
    maps = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    pooled = pool(stage, maps)
    padded = F.pad(maps, [padding] * 4)  # its zeros are part of the averages
    for row in range(grid):
        for column in range(grid):
            window = padded[..., row * stride :, column * stride :][..., :kernel, :kernel]
            assert window.shape[-2:] == (kernel, kernel)
            value = pooled.view(2, 3, grid, grid)[..., row, column]
            assert torch.allclose(value, window.mean((-1, -2)), atol=1e-6)
    assert not torch.allclose(pooled, F.adaptive_avg_pool2d(maps, grid).flatten(1), atol=1e-3)
    info = layer_info(stage, torch.empty(1, channels, side, side, device="meta"))
    assert (info.channels, info.grid, info.dim) == (channels, grid, dim)
    assert info.window == f"published {kernel}/{stride}/{padding} of {side}x{side}"


def test_a_resnet50_at_224_px_has_the_published_dimensions():
    model = build_model(ModelConfig(name="resnet50"), seed=0).backbone.eval()
    infos = layer_infos(model.stages, 224)
    assert {name: info.dim for name, info in infos.items()} == {
        **{name: row[-1] for name, row in PUBLISHED.items()},
        "pool": 2048,
    }
    assert all(infos[name].window.startswith("published") for name in PUBLISHED)
    assert infos["pool"].window == "global average"


@pytest.mark.parametrize(("name", "stem", "side"), [("resnet18", "imagenet", 64),
                                                    ("resnet18", "small", 32),
                                                    ("rotnet_nin", "imagenet", 32)])  # fmt: skip
def test_other_sides_are_pooled_to_the_published_grid_or_left(name, stem, side):
    model = build_model(ModelConfig(name=name, stem=stem, width=8), seed=0).backbone.eval()
    maps = model.stages(torch.randn(2, 3, side, side))
    infos = layer_infos(model.stages, side)
    for stage, of_stage in maps.items():
        features = pool(stage, of_stage.half())
        assert features.shape == (2, infos[stage].dim) and features.dtype == torch.float32
        if stage == "pool":
            continue
        largest = PUBLISHED[stage][5] if stage in PUBLISHED else 6
        grid = min(of_stage.shape[-1], largest)
        assert infos[stage].grid == grid
        same = pool(stage, of_stage)
        assert torch.equal(same, F.adaptive_avg_pool2d(of_stage, grid).flatten(1))
        if grid == of_stage.shape[-1]:
            assert torch.equal(same, of_stage.flatten(1))
