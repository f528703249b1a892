"""MS COCO: images that can show several of 80 categories.

``annotations/instances_SPLITYEAR.json`` lists the images in ``SPLITYEAR/``. A category is present
if at least one instance is outlined, ignored if it is annotated only as a crowd, and absent
otherwise.

Annotation files are large (450 MB for COCO's training set) and consist mostly of outlines, which
are dropped during parsing. Importing this module does not import torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrot.data.labels import ABSENT, PRESENT, UNCOUNTED
from fastrot.data.sources.listing import Source, count_unlisted, listed_source
from fastrot.data.splits import SplitError
from fastrot.errors import BadDataError, UsageError

_INSTANCES = re.compile(r"instances_((?:train|val)[0-9]{4})\.json")


def find(root: Path) -> Path | None:
    """Return the folder of COCO (``root`` or ``coco`` in it), or None."""
    return next((folder for folder in (root, root / "coco") if _parts(folder)), None)


def list_coco(root: Path, split: str | None, boundary: Path | None) -> Source:
    """List one split, with labels of shape (n, 80).

    Args:
        root: the folder with ``annotations/``, or one that contains it as ``coco``.
        split: train or val, with the year (train2017) if there are several.
        boundary: folder that no link may lead out of; None: links may lead anywhere.

    Raises:
        UsageError: the layout is not COCO's, or the split does not exist.
        BadDataError: the annotations are damaged, or an image in them is missing.
        OSError: as the system reports it.
    """
    folder, lists = find_part(root, split, otherwise=", or choose another --kind")
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
        left_out=count_unlisted(folder, found.names),
    )


def find_part(root: Path, split: str | None, *, otherwise: str = "") -> tuple[Path, Path]:
    """Return the folder with the images of a split, and its annotation file.

    Args:
        root: as for ``list_coco``.
        split: as for ``list_coco``.
        otherwise: what else can be done about a folder of another layout.

    Raises:
        UsageError: the layout is not COCO's, or the split does not exist.
    """
    base = find(root)
    if base is None:
        raise UsageError(
            f"{root}: not COCO, which has annotations/instances_train2017.json and the images "
            f"in train2017/; name the folder with both{otherwise}"
        )
    parts = _parts(base)
    chosen = [part for part in parts if split in (part, part[:-4])]
    if len(chosen) != 1:
        asked = "has several parts" if split is None or chosen else f"has no split {split!r}"
        raise SplitError(f"{base} {asked}", parts)
    folder = base / chosen[0]
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; extract the images of {chosen[0]} there")
    return folder, base / "annotations" / f"instances_{chosen[0]}.json"


@dataclass(frozen=True)
class Annotations:
    """The contents of a file that image-level labels need: n images, m annotations, K categories.

    Attributes:
        names: n file names, in order of the image ids.
        categories: K names, in order of the category ids.
        image: index into ``names``, shape (m,), int64.
        category: index into ``categories``, shape (m,), int64.
        crowd: whether an annotation marks a crowd, shape (m,), bool.
    """

    names: list[str]
    categories: list[str]
    image: NDArray[np.int64]
    category: NDArray[np.int64]
    crowd: NDArray[np.bool_]


def read_annotations(path: Path) -> Annotations:
    """Read an annotation file.

    Raises:
        BadDataError: the file is not JSON of this format, or contradicts itself.
        OSError: as the system reports it.
    """
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file, object_hook=_slim)
        image_ids, names = _columns(document, "images", _Image, (int, str))
        of_image, of_category, crowd = _columns(
            document, "annotations", _Annotation, (int, int, int)
        )
        category_ids, categories = _columns(document, "categories", _Category, (int, str))
        ids, order = in_order("image", image_ids)
        known, by_id = in_order("category", category_ids)
        return Annotations(
            names=[names[i] for i in order],
            categories=[categories[i] for i in by_id],
            image=look_up("image_id", ids, of_image),
            category=look_up("category_id", known, of_category),
            crowd=np.array(crowd, np.int64) != 0,
        )
    except (ValueError, OverflowError, RecursionError) as error:  # also JSON and Unicode errors
        raise BadDataError(
            f"{path}: not annotations in COCO's format: {error}; extract the dataset again"
        ) from None


def _parts(base: Path) -> list[str]:
    """Return the parts that have annotations, by names such as train2017."""
    folder = base / "annotations"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [match[1] for name in names if (match := _INSTANCES.fullmatch(name))]


class _Image(NamedTuple):
    id: int
    name: str


class _Annotation(NamedTuple):
    image: int
    category: int
    crowd: int


class _Category(NamedTuple):
    id: int
    name: str


def _slim(value: dict[str, Any]) -> Any:
    """Reduce one JSON object to what is needed of it."""
    if "image_id" in value and "category_id" in value:
        return _Annotation(value["image_id"], value["category_id"], value.get("iscrowd", 0))
    if "file_name" in value and "id" in value:
        return _Image(value["id"], value["file_name"])
    if "name" in value and "id" in value:
        return _Category(value["id"], value["name"])
    return value


def _columns(
    document: Any, key: str, kind: type[Any], types: tuple[type[Any], ...]
) -> list[tuple[Any, ...]]:
    """Return the entries of a list as one tuple per field, each of a single type."""
    entries = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"no list {key!r}")
    if set(map(type, entries)) == {kind}:
        columns = list(zip(*entries, strict=True))
        if all(set(map(type, c)) == {t} for c, t in zip(columns, types, strict=True)):
            return columns
    raise ValueError(f"an entry of {key!r} lacks a value or has one of the wrong type")


def in_order(what: str, ids: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Return the ids in ascending order, and the position that each had.

    Raises:
        ValueError: two are equal.
    """
    array = np.array(ids, np.int64)
    order = np.argsort(array, kind="stable")
    if (twice := np.flatnonzero(np.diff(array[order]) == 0)).size:
        raise ValueError(f"two entries have the {what} id {array[order][twice[0]]}")
    return array[order], order


def look_up(what: str, ids: NDArray[np.int64], wanted: Sequence[int]) -> NDArray[np.int64]:
    """Return the index of each wanted id among the ids in ascending order.

    Raises:
        ValueError: one is not among them.
    """
    asked = np.array(wanted, np.int64)
    found = np.minimum(np.searchsorted(ids, asked), len(ids) - 1)
    if (wrong := np.flatnonzero(ids[found] != asked)).size:
        raise ValueError(f"an annotation has the {what} {asked[wrong[0]]}, which is not listed")
    return found.astype(np.int64)
