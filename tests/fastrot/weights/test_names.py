"""Names and wrappings of other codebases, without their values."""

from __future__ import annotations

import pytest
import torch

from fastrot.config import ModelConfig
from fastrot.errors import MismatchError
from fastrot.models.backbones import build_model
from fastrot.weights.names import find_tensors, guess_model, split_network


def state(**settings) -> dict[str, torch.Tensor]:
    """The tensors of an architecture, without memory behind them."""
    with torch.device("meta"):
        return build_model(ModelConfig(**settings), seed=0).backbone.state_dict()


@pytest.mark.parametrize("settings", [
    {"name": "resnet18", "width": 16}, {"name": "resnet34"}, {"name": "resnet50"},
    {"name": "resnet101"}, {"name": "resnet18", "stem": "small", "width": 8},
    {"name": "rotnet_nin", "blocks": 3}, {"name": "rotnet_nin", "blocks": 5},
], ids=str)  # fmt: skip
def test_the_architecture_is_known_by_names_and_shapes(settings):
    assert guess_model(state(**settings)) == ModelConfig(**settings)


@pytest.mark.parametrize("name", ["resnet152", "wide_resnet50_2", "resnext50_32x4d"])
def test_torchvisions_other_resnets_do_not_fit(name):
    """They share all names with one of ours: the shapes, or the depth, tell."""
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().state_dict()
    if name == "resnet152":
        with pytest.raises(MismatchError, match="3-8-36-3 blocks"):
            guess_model(split_network(theirs)[0])
        return
    ours = state(name=guess_model(split_network(theirs)[0]).name)
    assert any(tensor.shape != theirs[key].shape for key, tensor in ours.items())


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_torchvisions_resnets_have_our_names_and_shapes(name):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().state_dict()
    ours = state(name=name)
    assert {key: t.shape for key, t in theirs.items() if not key.startswith("fc.")} == {
        key: t.shape for key, t in ours.items()
    }


def test_an_unknown_network_is_refused_with_examples_of_its_names():
    with pytest.raises(MismatchError, match=r"neither a ResNet nor .*: its tensors are blocks.0.q"):
        guess_model({"blocks.0.q.weight": torch.zeros(2, 2)})
    with pytest.raises(MismatchError, match="2-0-0-0 blocks"):
        names = ("conv1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight")
        guess_model({name: torch.zeros(8, 3, 7, 7) for name in names})


def test_a_prefix_is_what_stands_before_the_first_tensors():
    tensors = state(name="resnet18", width=8)
    for prefix in ("", "module.", "_feature_blocks.", "model.backbone.", "a.layer1.0."):
        there = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
        there["elsewhere.weight"] = torch.zeros(1)
        assert split_network(there)[0].keys() - {"elsewhere.weight"} == tensors.keys()


def test_nested_wrappings_are_opened_only_where_they_are_known():
    tensor = torch.zeros(1)
    inner = {"conv1.weight": tensor}
    assert find_tensors({"model": {"state_dict": inner}, "epoch": 1}) == inner
    assert find_tensors(inner | {"step": 3, 5: tensor}) == inner
    with pytest.raises(MismatchError, match="top level holds ema, epoch"):
        find_tensors({"ema": inner, "epoch": 1})
    for empty in ({}, None, [inner], {"state_dict": {}}, {"state_dict": {"a": 1}}):
        with pytest.raises(MismatchError, match="no tensors where weight files keep them"):
            find_tensors(empty)
    loop: dict = {}
    loop["model"] = loop
    with pytest.raises(MismatchError):
        find_tensors(loop)
