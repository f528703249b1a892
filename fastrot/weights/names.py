"""How other codebases name the tensors of a backbone, and how these names map to ours.

Our ResNet has torchvision's names; timm, mmcv's ``ResNet`` and the MMSelfSup and VISSL files
hold the same names under some prefix. Where they put the tensors in the file:

- torchvision, timm: at the top, beside ``fc.*``.
- MMSelfSup 0.x: ``state_dict``, prefix ``backbone.``, beside ``head.fc_cls.*``; if extracted by
  its own script, the same without the prefix.
- VISSL: ``classy_state_dict`` / ``base_model`` / ``model`` / ``trunk``, prefix
  ``_feature_blocks.``.
- RotNet (Gidaris et al., 2018): ``network``, with
  ``_feature_blocks.0.Block1_ConvB1.layers.Conv.weight`` for our ``block1.0.conv.weight``.
- fastrot: ``backbone.safetensors`` at the top; ``model.backbone.`` in ``tensors.safetensors``.
- DataParallel and DistributedDataParallel put ``module.`` in front of any of them.

Prefixes are not listed but detected, as whatever precedes the names of the first tensors. A file
with two networks (MoCo's query and key encoders) is refused, since the choice is unclear.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from fastrot.config import ModelConfig, ModelName
from fastrot.errors import MismatchError
from fastrot.weights.averages import Which, average_keys, choose_prefix

Tensors = dict[str, torch.Tensor]

_WRAPPERS = (
    *("classy_state_dict", "base_model", "model", "trunk"),
    *("state_dict", "model_state_dict", "network", "backbone"),
)
_DEEPEST = 8
_NIN_NAME = re.compile(
    r"^(?P<prefix>.*?)_feature_blocks\.(?P<block>\d+)\.Block(?P<number>\d+)_ConvB(?P<layer>\d+)"
    r"\.layers\.(?P<part>Conv|BatchNorm)\.(?P<tensor>\w+)$"
)
_PARTS = {"Conv": "conv", "BatchNorm": "bn"}
_RESNET_FIRST = ("conv1.weight", "layer1.0.conv1.weight")
_NIN_FIRST = ("block1.0.conv.weight", "block2.0.conv.weight")
_RESNETS: dict[tuple[bool, tuple[int, ...]], ModelName] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
}


def find_tensors(tree: Any) -> Tensors:
    """Return the named tensors of a loaded weight file, unwrapped from known containers.

    Args:
        tree: contents of the file: nested dictionaries, tensors and plain values.

    Raises:
        MismatchError: there are no tensors; the message names the keys of the file.
    """
    found = tree
    for _ in range(_DEEPEST):
        if not isinstance(found, Mapping):
            break
        tensors = {
            name: value
            for name, value in found.items()
            if isinstance(name, str) and isinstance(value, torch.Tensor)
        }
        if any(_is_parameter(name) for name in tensors):
            return tensors
        inner = [found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)]
        if not inner:
            break
        found = inner[0]
    keys = [str(key) for key in tree][:6] if isinstance(tree, Mapping) else [type(tree).__name__]
    average = average_keys(tree)[:1] if isinstance(tree, Mapping) else []
    fix = (
        f"its {average[0]!r} is an average: add --weights ema to use it"
        if average
        else ("save the state dict alone, or under 'state_dict'")
    )
    raise MismatchError(
        f"no tensors where weight files keep them; the top level holds "
        f"{', '.join(keys) or 'nothing'}; {fix}"
    )


def split_network(
    tensors: Mapping[str, torch.Tensor], which: Which | None = None
) -> tuple[Tensors, str]:
    """Extract the network from a state dict, and rename its tensors to our backbones' names.

    A tensor of no known layout keeps its name, so that a message can show it.

    Args:
        tensors: tensors of the file.
        which: choice between two networks, one of which is named as the average of the other.

    Returns:
        The tensors, and the prefix of the network if it was chosen from two, else empty.

    Raises:
        MismatchError: the file holds two networks.
        UsageError: the average is requested, but there is none.
    """
    named = {_from_rotnet(name) or name: tensor for name, tensor in tensors.items()}
    prefixes = sorted(
        name.removesuffix(first)
        for first, second in (_RESNET_FIRST, _NIN_FIRST)
        for name in named
        if _ends_at_a_part(name, first) and f"{name.removesuffix(first)}{second}" in named
    )
    chosen = choose_prefix(prefixes, which)
    if len(prefixes) > 1 and chosen is None:
        shown = ", ".join(repr(prefix) for prefix in prefixes)
        raise MismatchError(
            f"it holds {len(prefixes)} networks, with the prefixes {shown}; save only one of them, "
            "or choose with --weights plain or --weights ema if one is the average of the other"
        )
    prefix = chosen or (prefixes[0] if prefixes else "")
    found = {name.removeprefix(prefix): t for name, t in named.items() if name.startswith(prefix)}
    return found, chosen or ""


def guess_model(tensors: Mapping[str, torch.Tensor]) -> ModelConfig:
    """Infer the architecture from tensors with our names, by their names and shapes.

    Raises:
        MismatchError: it is not a known architecture.
    """
    first = tensors.get("conv1.weight")
    if first is not None and first.ndim == 4:
        depths = tuple(
            len({m[1] for name in tensors if (m := re.match(rf"layer{n}\.(\d+)\.conv1", name))})
            for n in (1, 2, 3, 4)
        )
        bottleneck = "layer1.0.conv3.weight" in tensors
        if name := _RESNETS.get((bottleneck, depths)):
            return ModelConfig(
                name=name,
                stem="small" if first.shape[-1] == 3 else "imagenet",
                width=max(8, first.shape[0]),
            )
        if any(depths):
            shown = "-".join(str(depth) for depth in depths)
            raise MismatchError(
                f"a network with {shown} blocks in its four stages, which is not a ResNet-18, -34, "
                "-50 or -101"
            )
    blocks = {m[1] for name in tensors if (m := re.match(r"block(\d)\.0\.conv\.weight$", name))}
    if 3 <= len(blocks) <= 5:
        return ModelConfig(name="rotnet_nin", blocks=len(blocks))
    examples = ", ".join(sorted(tensors)[:4])
    raise MismatchError(
        f"neither a ResNet nor RotNet's network-in-network: its tensors are {examples} ..."
    )


def _from_rotnet(name: str) -> str | None:
    match = _NIN_NAME.match(name)
    if match is None or int(match["block"]) + 1 != int(match["number"]):
        return None
    part, layer = _PARTS[match["part"]], int(match["layer"]) - 1
    return f"{match['prefix']}block{match['number']}.{layer}.{part}.{match['tensor']}"


def _ends_at_a_part(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _is_parameter(name: str) -> bool:
    return name.endswith((".weight", ".bias", ".running_mean", ".running_var"))
