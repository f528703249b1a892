"""Recognition of the splits of a dataset by the names of their folders or files.

Names may have any case and the usual affixes: ``Training`` and ``Testing``, ``seg_train`` and
``seg_test``, ``train2017`` and ``val2017``, ``imagenet-train-0001``. Importing this module imports
no torch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fastrot.errors import UsageError

_WORDS = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "trainval": "trainval",
}
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[^\W\d_]+")
_SET = re.compile(r"(.+)(sets?)")


class _Name(NamedTuple):
    """The split that a name stands for, and the words around it."""

    part: str
    affix: tuple[str, ...]


def find_splits(names: Iterable[str]) -> dict[str, str]:
    """Return the splits among the names of a folder's entries.

    A class may be named like a split (``train`` beside ``bus``; ``bullet_train`` and
    ``steam_train``; ``train_station`` and ``test_tube``). Names are therefore read as splits only
    if all of them are plain words for splits, or if two name different splits with the same words
    around them.

    Returns:
        ``train``, ``val``, ``test`` or ``trainval`` by name; empty if there are no splits.

    Example:
        >>> find_splits(["seg_test", "seg_train"])
        {'seg_test': 'test', 'seg_train': 'train'}
        >>> find_splits(["bus", "train"])
        {}
    """
    names = list(names)
    meant = {name: found for name in names if (found := _parse(name)) is not None}
    parts: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for found in meant.values():
        parts[found.affix].add(found.part)
    all_plain = len(meant) == len(names) and set(parts) == {()}
    if all_plain or any(len(each) > 1 for each in parts.values()):
        return {name: found.part for name, found in meant.items()}
    return {}


def named_split(splits: Mapping[str, str], asked: str) -> list[str]:
    """Return the names that match ``asked``: exactly, else ignoring case, else by their split.

    Args:
        splits: as returned by ``find_splits``.
        asked: a name, or a split: ``train``, ``val``, ``test`` in any of their spellings.

    Example:
        >>> named_split({"Testing": "test", "Training": "train"}, "train")
        ['Training']
    """
    if asked in splits:
        return [asked]
    if same := [name for name in splits if name.lower() == asked.lower()]:
        return same
    wanted = _parse(asked)
    if wanted is None or wanted.affix:
        return []
    return [name for name, part in splits.items() if part == wanted.part]


def _parse(name: str) -> _Name | None:
    words = []
    for word in _WORD.findall(_CAMEL.sub("_", name)):
        word = word.lower()
        glued = _SET.fullmatch(word)
        words += [glued[1], "set"] if glued and glued[1] in _WORDS else [word]
    parts = [_WORDS[word] for word in words if word in _WORDS]
    affix = tuple(word for word in words if word not in _WORDS)
    if sorted(parts) == ["train", "val"]:
        return _Name("trainval", affix)
    return _Name(parts[0], affix) if len(parts) == 1 else None


class SplitError(UsageError):
    """A dataset lacks the split that was asked for, or has several and none was chosen.

    Args:
        what: the folder, and what is wrong.
        choices: the splits that it has.
    """

    def __init__(self, what: str, choices: Sequence[str]) -> None:
        super().__init__(what, choices)
        self.what = what
        self.choices = " or ".join(choices) or "(none found)"

    def __str__(self) -> str:
        return f"{self.what}: choose --split {self.choices}"
