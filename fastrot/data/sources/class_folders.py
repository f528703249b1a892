"""Checks lists of images against their folders, which hold one class each.

This finds wrong labels and lists that were cut short. Importing this module does not import torch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrot.data.images.decode import SUFFIXES
from fastrot.data.sources.listing import SIZES
from fastrot.errors import BadDataError

_PARTLY = "read a part of the data as class folders, with --kind folder"


class ImageList(NamedTuple):
    """A list of n images: its path, the names relative to a folder, and labels of shape (n,)."""

    path: Path
    names: Sequence[str]
    labels: NDArray[np.int64]


def one_folder_a_class(lists: Sequence[ImageList]) -> dict[int, str]:
    """Return the folder of each label in the lists.

    Raises:
        BadDataError: a folder has several labels, or a label has several folders.
    """
    pairs: Counter[tuple[str, int]] = Counter()
    for part in lists:
        pairs.update(zip(map(os.path.dirname, part.names), part.labels.tolist(), strict=True))
    # The most common pairs come first, so a single wrong label is the one that is reported.
    label_of: dict[str, int] = {}
    folder_of: dict[int, str] = {}
    for (folder, label), _ in pairs.most_common():
        label_of.setdefault(folder, label)
    for folder, label in label_of.items():
        folder_of.setdefault(label, folder)
    if not len(pairs) == len(label_of) == len(folder_of):
        raise _contradiction(lists, pairs, label_of, folder_of)
    return folder_of


def _contradiction(
    lists: Sequence[ImageList],
    pairs: Counter[tuple[str, int]],
    label_of: dict[str, int],
    folder_of: dict[int, str],
) -> BadDataError:
    for part in lists:
        for name, label in zip(part.names, part.labels.tolist(), strict=True):
            folder = os.path.dirname(name)
            expected = label_of[folder]
            if label != expected:
                why = f"{pairs[folder, expected]:,} others in its folder have {expected}"
            elif folder_of[label] != folder:
                why = f"that is the label of {folder_of[label]!r}"
            else:
                continue
            return BadDataError(
                f"{part.path}: {name!r} has label {label}, but {why}; correct the line or "
                "extract the dataset again"
            )
    raise AssertionError("the counts contradict each other, but no line does")


def check_every_class(listed: ImageList, num_classes: int) -> None:
    """Check that a list has an image of every class.

    Raises:
        BadDataError: the list lacks a class.
    """
    lacking = np.flatnonzero(np.bincount(listed.labels, minlength=num_classes) == 0)
    if lacking.size:
        raise BadDataError(
            f"{listed.path}: no image of {lacking.size:,} of {num_classes:,} classes, the first "
            f"with label {lacking[0]}; extract the dataset again, or {_PARTLY}"
        )


def check_none_unlisted(root: Path, kind: str, lists: Mapping[str, ImageList]) -> None:
    """Check that every image in the class folders is in one of the lists.

    Nothing is checked if the lists have their published lengths, or if one of the dataset's splits
    has no list. Missing folders are skipped.

    Args:
        root: folder that the names are relative to.
        kind: kind of dataset, as in ``SIZES``.
        lists: the list of each split.

    Raises:
        BadDataError: an image is in none of the lists.
        OSError: as the system reports it.
    """
    lengths = {(kind, split): len(part.names) for split, part in lists.items()}
    genuine = {key: size for key, size in SIZES.items() if key[0] == kind}
    if lengths.keys() != genuine.keys() or lengths == genuine:
        return
    parts = tuple(lists.values())
    counts = Counter(os.path.dirname(name) for part in parts for name in part.names)
    for folder, count in counts.items():
        there = _images(root / folder)
        if len(there) <= count:
            continue
        listed = {name for part in parts for name in part.names if os.path.dirname(name) == folder}
        extra = sorted(name for name in there if os.path.join(folder, name) not in listed)
        named = " or ".join(str(part.path) for part in parts)
        raise BadDataError(
            f"{root / folder}: {len(extra):,} of {len(there):,} images are not in {named}, the "
            f"first {extra[0]!r}; a list was cut short; extract the dataset again, or {_PARTLY}"
        )


def _images(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [e.name for e in entries if os.path.splitext(e.name)[1].lower() in SUFFIXES]
