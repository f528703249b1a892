"""MS COCO: 80 categories of which an image can show several.

``annotations/instances_SPLITYEAR.json`` with the images in ``SPLITYEAR/``. A category is present
where an instance of it is outlined, not counted where there is only a crowd of it, and absent
otherwise. Importing this module imports no torch.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fastrot.data.annotations import read_annotations
from fastrot.data.labels import ABSENT, PRESENT, UNCOUNTED
from fastrot.data.listing import Source, listed_source
from fastrot.errors import UsageError

_INSTANCES = re.compile(r"instances_((?:train|val)[0-9]{4})\.json")


def find(root: Path) -> Path | None:
    """The folder of COCO that is ``root``, or ``coco`` in it; None: there is none."""
    return next((folder for folder in (root, root / "coco") if _parts(folder)), None)


def list_coco(root: Path, split: str | None, boundary: Path | None) -> Source:
    """List one split: labels of shape (n, 80).

    Args:
        root: the folder with ``annotations/``.
        split: train or val, with the year (train2017) where there are several.
        boundary: no link may lead out of this folder; None: links may lead anywhere.

    Raises:
        UsageError: no COCO layout, or no such split.
        BadDataError: the annotations are damaged, or an image of them is missing.
        OSError: as the system reports it.
    """
    base = find(root)
    if base is None:
        raise UsageError(
            f"{root}: not COCO, which has annotations/instances_train2017.json and the images "
            "in train2017/; name the folder with both, or choose another --kind"
        )
    parts = _parts(base)
    chosen = [part for part in parts if split in (part, part[:-4])]
    if len(chosen) != 1:
        asked = "has several parts" if split is None or chosen else f"has no split {split!r}"
        raise UsageError(f"{base} {asked}: choose --split {' or '.join(parts)}")
    folder = base / chosen[0]
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; unpack the images of {chosen[0]} there")
    lists = base / "annotations" / f"instances_{chosen[0]}.json"
    found = read_annotations(lists)
    labels = np.full((len(found.names), len(found.categories)), ABSENT, np.int8)
    labels[found.image[found.crowd], found.category[found.crowd]] = UNCOUNTED
    labels[found.image[~found.crowd], found.category[~found.crowd]] = PRESENT
    return listed_source(
        folder,
        "coco",
        names=found.names,
        labels=labels,
        class_names=found.categories,
        listed_in=lists,
        boundary=boundary,
    )


def _parts(base: Path) -> list[str]:
    """Names like train2017 of the parts that have annotations."""
    folder = base / "annotations"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [match[1] for name in names if (match := _INSTANCES.fullmatch(name))]
