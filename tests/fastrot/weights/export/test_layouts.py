"""Names of other libraries: each goes there and back, and those of foreign files stay."""

from __future__ import annotations

import pytest
import torch

from fastrot.config import ModelConfig
from fastrot.errors import MismatchError
from fastrot.models.backbones import build_model
from fastrot.weights.export.layouts import (
    detectron2_name,
    our_name,
    renamed,
    transformers_name,
    with_head,
)
from fastrot.weights.load import load_backbone
from fastrot.weights.rotation_head import Head
from tests.fastrot.weights.networks import NARROW, backbone_of, random_model, saved


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("rename", [detectron2_name, transformers_name])
def test_every_name_goes_there_and_back(rename, name):
    names = list(build_model(ModelConfig(name=name, width=8), seed=0).backbone.state_dict())
    theirs = [rename(each) for each in names]
    assert len(set(theirs)) == len(names) and not set(theirs) & set(names)
    assert [our_name(each) for each in theirs] == names
    assert [our_name(f"resnet.{each}") for each in theirs if rename is transformers_name] in (
        [],
        names,
    )
    assert [our_name(each) for each in names] == names


def test_some_names_as_the_libraries_have_them() -> None:
    for ours, detectron2, transformers in (
        ("conv1.weight", "stem.conv1.weight", "embedder.embedder.convolution.weight"),
        ("bn1.bias", "stem.conv1.norm.bias", "embedder.embedder.normalization.bias"),
        (
            "layer4.2.bn3.running_var",
            "res5.2.conv3.norm.running_var",
            "encoder.stages.3.layers.2.layer.2.normalization.running_var",
        ),
        (
            "layer2.0.downsample.0.weight",
            "res3.0.shortcut.weight",
            "encoder.stages.1.layers.0.shortcut.convolution.weight",
        ),
    ):
        assert (detectron2_name(ours), transformers_name(ours)) == (detectron2, transformers)


def test_the_head_is_added_under_the_name_of_the_library() -> None:
    head = Head(torch.ones(4, 2), torch.zeros(4), "head.fc")
    assert list(with_head({"a": torch.ones(1)}, head, "fc")) == ["a", "fc.weight", "fc.bias"]
    assert list(with_head({"a": torch.ones(1)}, None, "fc")) == ["a"]


def test_networks_of_detectron2_itself_are_not_taken_for_ours(tmp_path):
    """They may have the stride in the 1x1 convolution, which no tensor tells."""
    theirs = renamed(backbone_of(random_model(NARROW)), detectron2_name)
    with pytest.raises(MismatchError, match="neither a ResNet nor"):
        load_backbone(saved({"model": theirs}, tmp_path / "theirs.pth"))
