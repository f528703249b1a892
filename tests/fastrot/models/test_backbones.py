"""Models: the same function as torchvision's for the same names, and the stages in between."""

from __future__ import annotations

import pytest
import torch
import torchvision

from fastrot.config import ModelConfig
from fastrot.models.backbones import NetworkInNetwork, ResNet, build_model


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_backbone_computes_what_torchvisions_does(name: str) -> None:
    ours = build_model(ModelConfig(name=name), seed=3).backbone.eval()
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert missing == ["fc.weight", "fc.bias"]
    theirs.fc = torch.nn.Identity()
    views = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(views), theirs(views), rtol=1e-5, atol=1e-5)


def test_stages_have_the_published_shapes() -> None:
    backbone = ResNet("resnet50").eval()
    with torch.no_grad():
        stages = backbone.stages(torch.zeros(1, 3, 224, 224))
    assert {name: tuple(stage.shape[1:]) for name, stage in stages.items()} == {
        "stem": (64, 112, 112),
        "layer1": (256, 56, 56),
        "layer2": (512, 28, 28),
        "layer3": (1024, 14, 14),
        "layer4": (2048, 7, 7),
        "pool": (2048,),
    }
    assert tuple(stages) == backbone.stage_names


def test_small_stem_keeps_the_resolution_and_width_scales_every_stage() -> None:
    stages = ResNet("resnet18", stem="small", width=16).stages(torch.zeros(2, 3, 32, 32))
    assert stages["stem"].shape == (2, 16, 32, 32)
    assert stages["layer4"].shape == (2, 128, 4, 4)


@pytest.mark.parametrize("blocks", [3, 4, 5])
def test_nin_has_rotnets_shapes(blocks: int) -> None:
    network = NetworkInNetwork(blocks)
    stages = network.stages(torch.zeros(2, 3, 32, 32))
    assert stages["block1"].shape == (2, 96, 16, 16)
    assert stages["block2"].shape == (2, 192, 8, 8)  # ConvB2: 12,288 features
    assert stages[f"block{blocks}"].shape == (2, 192, 8, 8)
    assert stages["pool"].shape == (2, 192)


def test_nin_size_is_the_published_one() -> None:
    # Convolutions without bias and batch norms, block by block, summed by hand.
    convolutions = (
        (3 * 25 + 160) * 192
        + 160 * 96
        + (96 * 25 + 192 + 192) * 192
        + 2 * (192 * 9 + 192 + 192) * 192
    )
    norms = 2 * (192 + 160 + 96 + 9 * 192)
    count = sum(parameter.numel() for parameter in NetworkInNetwork(4).parameters())
    assert count == convolutions + norms


def test_weights_depend_on_the_seed_and_on_nothing_else() -> None:
    first = build_model(ModelConfig(name="resnet18", width=8), seed=1).state_dict()
    torch.randn(7)  # moves the global generator, which must not matter
    same = build_model(ModelConfig(name="resnet18", width=8), seed=1).state_dict()
    other = build_model(ModelConfig(name="resnet18", width=8), seed=2).state_dict()
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["backbone.conv1.weight"], other["backbone.conv1.weight"])


def test_head_starts_as_published() -> None:
    head = build_model(ModelConfig(name="resnet50"), seed=0).head.fc
    assert head.weight.shape == (4, 2048)
    assert abs(float(head.weight.detach().std()) - 0.01) < 5e-4
    assert not head.bias.any()
