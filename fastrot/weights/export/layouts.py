"""Names of a ResNet's tensors in other libraries, from ours, which are torchvision's, and back.

timm and mmcv's ``ResNet`` have the same names. The rotation head is given under the name of the
library's own classifier.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch

from fastrot.weights.rotation_head import Head

Tensors = dict[str, torch.Tensor]

_DETECTRON2 = re.compile(r"res(\d)\.(\d+)\.(conv\d|shortcut)(\.norm)?\.(\w+)")
_TRANSFORMERS = re.compile(
    r"(?:resnet\.)?encoder\.stages\.(\d)\.layers\.(\d+)\.(layer\.\d|shortcut)"
    r"\.(convolution|normalization)\.(\w+)"
)
_STEMS = (
    ("stem.conv1.norm.", "bn1."),
    ("stem.conv1.", "conv1."),
    ("embedder.embedder.convolution.", "conv1."),
    ("embedder.embedder.normalization.", "bn1."),
)
_LAYER = re.compile(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)")


def with_head(tensors: Mapping[str, torch.Tensor], head: Head | None, name: str) -> Tensors:
    """Return the tensors, and those of the head under ``name`` if there is one."""
    added = {} if head is None else {f"{name}.weight": head.weight, f"{name}.bias": head.bias}
    return {**tensors, **added}


def renamed(tensors: Mapping[str, torch.Tensor], rename: Callable[[str], str]) -> Tensors:
    """Return the tensors under other names."""
    return {rename(name): tensor for name, tensor in tensors.items()}


def detectron2_name(name: str) -> str:
    """Return detectron2's name of a tensor.

    Example:
        >>> detectron2_name("layer1.0.downsample.1.weight")
        'res2.0.shortcut.norm.weight'
    """
    match = _LAYER.fullmatch(name)
    if match is None:
        return name.replace("conv1.", "stem.conv1.").replace("bn1.", "stem.conv1.norm.")
    stage, block, part, number, tensor = match.groups()
    layer = {
        "conv": f"conv{number}",
        "bn": f"conv{number}.norm",
        "downsample.": "shortcut.norm" if number == "1" else "shortcut",
    }[part]
    return f"res{int(stage) + 1}.{block}.{layer}.{tensor}"


def transformers_name(name: str) -> str:
    """Return the name of a tensor in the ``ResNetModel`` of Hugging Face's transformers.

    Example:
        >>> transformers_name("layer1.0.bn2.bias")
        'encoder.stages.0.layers.0.layer.1.normalization.bias'
    """
    match = _LAYER.fullmatch(name)
    if match is None:
        stem = "embedder.embedder"
        return name.replace("conv1.", f"{stem}.convolution.").replace(
            "bn1.", f"{stem}.normalization."
        )
    stage, block, part, number, tensor = match.groups()
    layer = "shortcut" if part == "downsample." else f"layer.{int(number) - 1}"
    kind = "convolution" if (part, number) == ("downsample.", "0") or part == "conv" else ""
    return (
        f"encoder.stages.{int(stage) - 1}.layers.{block}.{layer}.{kind or 'normalization'}.{tensor}"
    )


def our_name(name: str) -> str:
    """Return our name of a tensor that ``detectron2_name`` or ``transformers_name`` renamed.

    Any other name is returned as it is.
    """
    if match := _DETECTRON2.fullmatch(name):
        stage, block, layer, norm, tensor = match.groups()
        return _in_stage(int(stage) - 1, block, layer.removeprefix("conv"), bool(norm), tensor)
    if match := _TRANSFORMERS.fullmatch(name):
        stage, block, layer, kind, tensor = match.groups()
        number = layer if layer == "shortcut" else str(int(layer.removeprefix("layer.")) + 1)
        return _in_stage(int(stage) + 1, block, number, kind == "normalization", tensor)
    for theirs, ours in _STEMS:
        if name.removeprefix("resnet.").startswith(theirs):
            return name.removeprefix("resnet.").replace(theirs, ours)
    return name


def _in_stage(stage: int, block: str, layer: str, norm: bool, tensor: str) -> str:
    part = (
        f"downsample.{int(norm)}" if layer == "shortcut" else f"{'bn' if norm else 'conv'}{layer}"
    )
    return f"layer{stage}.{block}.{part}.{tensor}"
