"""Files that hold a network twice: as trained, and averaged over the training (EMA).

Where they put the average:

- timm: ``state_dict_ema`` beside ``state_dict``.
- torchvision's reference scripts, MAE and ConvNeXt: ``model_ema`` beside ``model``.
- DINO and similar methods: ``teacher`` beside ``student``. Their own evaluations use the teacher.
- MMEngine: ``ema_state_dict`` beside ``state_dict``. It swaps the two when it saves, so
  ``state_dict`` is the average and ``ema_state_dict`` the network as trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fastrot.errors import UsageError

Which = Literal["plain", "ema"]

TEACHER, STUDENT = "teacher", "student"
_WRAPPERS = ("state_dict", "model", "model_state_dict", "network", "backbone", "base_model")
_AVERAGES = {"ema", "teacher", "averaged", "swa"}
_AVERAGED_PARTS = {*_AVERAGES, "momentum", "target", "k"}


@dataclass(frozen=True)
class Chosen:
    """The network chosen from a file.

    Attributes:
        tree: contents of the file for this network.
        key: key of the network if the file holds two; else empty.
        note: which one it is and how to get the other, if the file holds two; else empty.
    """

    tree: Any
    key: str = ""
    note: str = ""


def choose_network(tree: Any, which: Which | None = None) -> Chosen:
    """Choose between the two networks of a file.

    Args:
        tree: contents of the file.
        which: ``plain``: as trained; ``ema``: the average; None: the plain one, but the teacher
            of a student and a teacher, as in the published protocols.
    """
    if not isinstance(tree, Mapping):
        return Chosen(tree)
    averages = average_keys(tree)
    plain = [key for key in (*_WRAPPERS, STUDENT) if isinstance(tree.get(key), Mapping)]
    if not averages:
        if plain and average_keys(tree[plain[0]]):
            return choose_network(tree[plain[0]], which)
        return Chosen(tree)
    average = averages[0]
    if not plain:
        if which == "ema":
            return Chosen(tree[average], average)
        return Chosen(tree)  # the caller then reports that there is none
    trained = plain[0] if average != TEACHER or STUDENT not in plain else STUDENT
    swapped = average == "ema_state_dict" and is_mmengine(tree)
    if swapped:
        average, trained = trained, average
    default = average if average == TEACHER or swapped else trained
    key = {"plain": trained, "ema": average, None: default}[which]
    other = trained if key == average else average
    how = "ema" if other == average else "plain"
    what = "the average" if key == average else "as trained"
    return Chosen(
        tree[key], key, f"{key!r} ({what}) is used, not {other!r} (use --weights {how} for that)"
    )


def choose_prefix(prefixes: Sequence[str], which: Which | None) -> str | None:
    """Return the prefix of the requested network in a state dict; None if unclear or not requested.

    Raises:
        UsageError: the average is requested, but there is none.
    """
    averages = [prefix for prefix in prefixes if set(_words(prefix)) & _AVERAGED_PARTS]
    if which == "ema" and not averages:
        raise UsageError(
            "it holds no averaged weights: no key such as 'state_dict_ema', and no second network; "
            "omit --weights ema"
        )
    if which is None or len(prefixes) != 2 or len(averages) != 1:
        return None
    if which == "ema":
        return averages[0]
    return next(prefix for prefix in prefixes if prefix not in averages)


def average_keys(tree: Mapping[Any, Any]) -> list[str]:
    """Return the keys under which a file holds the tensors of an average."""
    return [
        key
        for key, value in tree.items()
        if isinstance(key, str)
        and set(_words(key)) & _AVERAGES
        and isinstance(value, Mapping)
        and _holds_tensors(value)
    ]


def _holds_tensors(tree: Mapping[Any, Any]) -> bool:
    inner = [value for value in tree.values() if isinstance(value, Mapping)]
    values = [*tree.values(), *(value for part in inner for value in part.values())]
    return any(isinstance(value, torch.Tensor) for value in values)


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())


def is_mmengine(tree: Mapping[Any, Any]) -> bool:
    """Return whether MMEngine wrote the file (MMSelfSup 1.x and its successor)."""
    meta = tree.get("meta")
    return "message_hub" in tree or (isinstance(meta, Mapping) and "mmengine_version" in meta)
