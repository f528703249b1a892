"""Places205: 2.4 million scenes in 205 classes.

``trainvalsplit_places205/train_places205.csv`` and ``val_places205.csv`` have lines of a name and
a label (``a/abbey/gsun_0a1b.jpg 0``); the names are relative to ``images256``, which the archive
puts into ``data/vision/torralba/deeplearning/``. A class is named as its folder is
(``a/apartment_building/outdoor``). Importing this module imports no torch.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fastrot.data.labelled_list import read_labelled_list
from fastrot.data.listing import Source, listed_source
from fastrot.errors import BadDataError, UsageError

NUM_CLASSES = 205

_SPLITS = ("train", "val")
_FOLDERS = ("data/vision/torralba/deeplearning/images256", "images256")


def find(root: Path) -> Path | None:
    """The folder with the lists that is ``root``, or in it; None: there is none."""
    for folder in (root / "trainvalsplit_places205", root):
        if any(_list(folder, split).is_file() for split in _SPLITS):
            return folder
    return None


def list_places(root: Path, split: str | None, boundary: Path | None) -> Source:
    """List one split: labels of shape (n,).

    Args:
        root: the folder with ``trainvalsplit_places205/`` and the images.
        split: train or val.
        boundary: no link may lead out of this folder; None: links may lead anywhere.

    Raises:
        UsageError: no such layout, or no such split.
        BadDataError: a list is damaged, or an image of it is missing.
        OSError: as the system reports it.
    """
    lists = find(root)
    if lists is None:
        raise UsageError(
            f"{root}: not Places205, which has trainvalsplit_places205/train_places205.csv; "
            "name the folder with it, or choose another --kind"
        )
    there = [name for name in _SPLITS if _list(lists, name).is_file()]
    if split not in there:
        asked = "has the splits of its lists" if split is None else f"has no split {split!r}"
        raise UsageError(f"{lists} {asked}: choose --split {' or '.join(there)}")
    images = next((root / name for name in _FOLDERS if (root / name).is_dir()), root)
    names, labels = read_labelled_list(_list(lists, split), num_classes=NUM_CLASSES)
    classes: dict[int, str] = {}
    for part in there:  # the names come from all lists: one of them may lack a class
        listed = (
            (names, labels)
            if part == split
            else read_labelled_list(_list(lists, part), num_classes=NUM_CLASSES)
        )
        for name, label in zip(listed[0], listed[1].tolist(), strict=True):
            folder = os.path.dirname(name)
            if classes.setdefault(label, folder) != folder:
                raise BadDataError(
                    f"{_list(lists, part)}: label {label} is of {classes[label]!r} and of "
                    f"{folder!r}; unpack it again"
                )
    return listed_source(
        images,
        "places205",
        names=names,
        labels=np.asarray(labels),
        class_names=[classes.get(i, f"class {i}") for i in range(NUM_CLASSES)],
        listed_in=_list(lists, split),
        boundary=boundary,
    )


def _list(folder: Path, split: str) -> Path:
    return folder / f"{split}_places205.csv"
