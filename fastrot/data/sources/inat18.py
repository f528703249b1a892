"""iNaturalist 2018: 8,142 species.

``train2018.json`` and ``val2018.json`` list images as ``train_val2018/GROUP/CLASS/x.jpg``; their
``categories`` give the class names. Importing this module does not import torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastrot.data.sources.class_folders import (
    ImageList,
    check_every_class,
    check_none_unlisted,
    one_folder_a_class,
)
from fastrot.data.sources.coco import read_annotations
from fastrot.data.sources.listing import Source, check_split, listed_source
from fastrot.errors import BadDataError, UsageError

NUM_CLASSES = 8142

_LISTS = {"train": "train2018.json", "val": "val2018.json"}


def find(root: Path) -> Path | None:
    """Return ``root`` if it contains an annotation file of iNaturalist 2018, else None."""
    return root if any((root / name).is_file() for name in _LISTS.values()) else None


def list_inaturalist(root: Path, split: str | None, boundary: Path | None) -> Source:
    """List one split, with labels of shape (n,).

    Args:
        root: the folder with the lists and ``train_val2018/``.
        split: train or val.
        boundary: folder that no link may lead out of; None: links may lead anywhere.

    Raises:
        UsageError: the layout is a different one, or the split does not exist.
        BadDataError: a list is damaged, has the wrong number of classes, contradicts the folders
            of its images or the other list, or an image in it is missing.
        OSError: as the system reports it.
    """
    there = [name for name, file in _LISTS.items() if (root / file).is_file()]
    if not there:
        raise UsageError(
            f"{root}: not iNaturalist 2018, which has train2018.json, val2018.json and "
            "train_val2018/; name the folder with them, or choose another --kind"
        )
    split = check_split(root, split, there)
    read = {part: _read(root / _LISTS[part]) for part in there}
    (path, names, labels), categories = read[split]
    for listed, others in read.values():
        if others != categories:
            raise BadDataError(
                f"{listed.path}: its categories differ from those of {path}; extract both again"
            )
    lists = {part: listed for part, (listed, _) in read.items()}
    one_folder_a_class(tuple(lists.values()))
    for listed in lists.values():
        check_every_class(listed, NUM_CLASSES)
    source = listed_source(
        root,
        "inat18",
        names=names,
        labels=labels,
        class_names=categories,
        listed_in=path,
        boundary=boundary,
    )
    check_none_unlisted(root, "inat18", lists)
    return source


def _read(path: Path) -> tuple[ImageList, list[str]]:
    """Read a list, and the names of its categories."""
    found = read_annotations(path)
    if len(found.categories) != NUM_CLASSES:
        raise BadDataError(
            f"{path}: {len(found.categories):,} categories instead of the {NUM_CLASSES:,} of "
            "iNaturalist 2018; extract the dataset again, or read a part of the data as "
            "class folders, with --kind folder"
        )
    counts = np.bincount(found.image, minlength=len(found.names))
    if (wrong := np.flatnonzero(counts != 1)).size:
        raise BadDataError(
            f"{path}: image {found.names[wrong[0]]!r} has {counts[wrong[0]]} annotations but must "
            "have one; extract the dataset again"
        )
    labels = np.zeros(len(found.names), np.int64)
    labels[found.image] = found.category
    return ImageList(path, found.names, labels), found.categories
