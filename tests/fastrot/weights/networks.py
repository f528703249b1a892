"""Weight files for the tests of exports and imports: random, with statistics that matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastrot.config import ModelConfig
from fastrot.models.backbones import RotationModel, build_model

NARROW = ModelConfig(name="resnet18", width=16)
WIDE = ModelConfig(name="resnet18")
NIN = ModelConfig(name="rotnet_nin")

Tensors = dict[str, torch.Tensor]


def random_model(config: ModelConfig, seed: int = 0) -> RotationModel:
    """A model in eval mode; every parameter and statistic has other values than at the start."""
    model = build_model(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif name == "head.fc.weight":
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model.eval().requires_grad_(False)


def backbone_of(model: RotationModel) -> Tensors:
    return {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}


def head_of(model: RotationModel) -> tuple[torch.Tensor, torch.Tensor]:
    return model.head.fc.weight.data.clone(), model.head.fc.bias.data.clone()


def mmselfsup(model: RotationModel, *, version: int = 0) -> dict[str, Any]:
    """A checkpoint with the keys of MMSelfSup 0.x or 1.x."""
    state = {f"backbone.{name}": tensor for name, tensor in backbone_of(model).items()}
    state["head.fc_cls.weight"], state["head.fc_cls.bias"] = head_of(model)
    if version == 0:
        return {"meta": {"epoch": 70, "mmselfsup_version": "0.7.0"}, "state_dict": state}
    return {"meta": {"epoch": 70, "mmengine_version": "0.1.0"}, "state_dict": state}


def vissl(model: RotationModel) -> dict[str, Any]:
    """A checkpoint with the keys of VISSL."""
    trunk = {f"_feature_blocks.{name}": tensor for name, tensor in backbone_of(model).items()}
    weight, bias = head_of(model)
    heads = {"0.clf.0.weight": weight, "0.clf.0.bias": bias}
    return {"classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": heads}}}}


def rotnet(model: RotationModel) -> dict[str, Any]:
    """A checkpoint with the keys of RotNet's own code."""
    network: Tensors = {}
    parts = {"conv": "Conv", "bn": "BatchNorm"}
    for name, tensor in backbone_of(model).items():
        block, layer, part, kind = name.split(".")
        number = int(block.removeprefix("block"))
        theirs = f"Block{number}_ConvB{int(layer) + 1}.layers.{parts[part]}.{kind}"
        network[f"_feature_blocks.{number - 1}.{theirs}"] = tensor
    weight, bias = head_of(model)
    network["_feature_blocks.4.Classifier.weight"] = weight
    network["_feature_blocks.4.Classifier.bias"] = bias
    return {"epoch": 200, "network": network}


def saved(tree: Any, path: Path) -> Path:
    torch.save(tree, path)
    return path


def equal(ours: Tensors, theirs: Tensors) -> bool:
    """Whether names, types and all bits are equal."""
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name])
        for name in ours
    )


def images(count: int = 3, side: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(5))
