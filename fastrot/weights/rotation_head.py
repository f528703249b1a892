"""The rotation head beside a backbone: its names in other codebases, and what its classes mean.

Class k of our head is k quarter turns counter-clockwise, as in RotNet, VISSL and MMSelfSup 0.x.
MMSelfSup 1.x turns clockwise (``mmcv.imrotate``), so its classes 1 and 3 are exchanged.

Names, under any prefix:

- fastrot: ``head.fc``; MMSelfSup: ``head.fc_cls``.
- VISSL: ``0.clf.0`` in ``heads``, beside the ``trunk``.
- RotNet: ``_feature_blocks.N.Classifier``.

Other layers with four outputs may predict something else, so no other name counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from fastrot.models.backbones import TURNS
from fastrot.weights.averages import is_mmengine

_KNOWN = r"head\.fc|head\.fc_cls|heads\.0\.clf\.0|_feature_blocks\.\d+\.Classifier"
_DEEPEST = 8
_EXCHANGED = (0, 3, 2, 1)


class Head(NamedTuple):
    """The linear layer from D pooled features to the four turns, in float32.

    Attributes:
        weight: shape (4, D).
        bias: shape (4,).
        name: name of the layer in its file.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    name: str


def find_head(tree: Any, *, names: str | None = None) -> Head | None:
    """Return the rotation head of a file; None if it holds none, or more than one.

    Args:
        tree: contents of the file: nested dictionaries, tensors and plain values.
        names: name of the layer if the file tells it; None: the known ones.
    """
    pattern = re.compile(rf"(?:^|.*\.)({re.escape(names) if names else _KNOWN})\.weight")
    tensors = dict(_flat(tree))
    found = []
    for key, weight in tensors.items():
        bias = tensors.get(f"{key.removesuffix('weight')}bias")
        if pattern.fullmatch(key) is None or bias is None:
            continue
        if weight.ndim == 2 and weight.shape[0] == TURNS and bias.shape == (TURNS,):
            found.append(Head(weight.float(), bias.float(), key.removesuffix(".weight")))
    return found[0] if len(found) == 1 else None


def is_clockwise(tree: Any) -> bool:
    """Return whether the classes of a file are clockwise turns, by the program that wrote it."""
    return isinstance(tree, Mapping) and is_mmengine(tree)


def turned_clockwise(head: Head) -> Head:
    """Return the head with classes 1 and 3 exchanged."""
    order = list(_EXCHANGED)
    return Head(head.weight[order], head.bias[order], head.name)


def _flat(tree: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors with their dotted names."""
    if isinstance(tree, torch.Tensor):
        yield prefix, tree
    elif isinstance(tree, Mapping) and depth < _DEEPEST:
        for key, value in tree.items():
            if isinstance(key, str):
                yield from _flat(value, f"{prefix}.{key}" if prefix else key, depth + 1)
