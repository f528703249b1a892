"""PASCAL VOC 2007: images that can show several of 20 classes.

The images are ``VOC2007/JPEGImages/ID.jpg``, the ids of a split ``ImageSets/Main/SPLIT.txt``, and
its labels ``ImageSets/Main/CLASS_SPLIT.txt``: 1 present, -1 absent, 0 present but only in instances
marked difficult, which the benchmark does not count. If there are ``Annotations/ID.xml``, they must
agree (they do for every image of the published dataset), and they suffice without the lists.
Importing this module does not import torch.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from fastrot.data.labels import ABSENT, PRESENT, UNCOUNTED
from fastrot.data.sources.listing import Source, check_split, count_unlisted, listed_source
from fastrot.errors import BadDataError, UsageError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
"""Class names in the order of the benchmark, which is alphabetical."""

_SPLITS = ("trainval", "test", "train", "val")
_VALUES = {"1": PRESENT, "0": UNCOUNTED, "-1": ABSENT}


def find(root: Path) -> Path | None:
    """Return the folder VOC2007 (``root`` or the usual folder in it), or None."""
    for folder in (root, root / "VOC2007", root / "VOCdevkit" / "VOC2007"):
        if (folder / "JPEGImages").is_dir() and (folder / "ImageSets" / "Main").is_dir():
            return folder
    return None


def list_voc(root: Path, split: str | None, boundary: Path | None) -> Source:
    """List one split, with labels of shape (n, 20).

    Args:
        root: VOC2007, VOCdevkit, or the folder that contains it.
        split: trainval, test, train or val.
        boundary: folder that no link may lead out of; None: links may lead anywhere.

    Raises:
        UsageError: the layout is not VOC's, or the split does not exist.
        BadDataError: a list or an annotation is missing or damaged, the two contradict each
            other, or an image is missing.
        OSError: as the system reports it.
    """
    base = find(root)
    if base is None:
        raise UsageError(
            f"{root}: not VOC 2007, which has JPEGImages/ and ImageSets/Main/ in "
            "VOCdevkit/VOC2007/; name that folder, or choose another --kind"
        )
    ids, labels = _labels(base, split)
    return listed_source(
        base,
        "voc07",
        names=[f"JPEGImages/{name}.jpg" for name in ids],
        labels=labels,
        class_names=CLASSES,
        listed_in=base / "ImageSets" / "Main" / f"{split}.txt",
        boundary=boundary,
        left_out=count_unlisted(base / "JPEGImages", _all_listed(base)),
    )


def _all_listed(base: Path) -> list[str]:
    """Return the names of the images in any split."""
    lists = [base / "ImageSets" / "Main" / f"{name}.txt" for name in _SPLITS]
    return [f"{name}.jpg" for path in lists if path.is_file() for name in read_lines(path)]


def _labels(base: Path, split: str | None) -> tuple[list[str], NDArray[np.int8]]:
    """Return ids in the order of the split's list, and their labels of shape (n, 20)."""
    lists = base / "ImageSets" / "Main"
    there = [name for name in _SPLITS if (lists / f"{name}.txt").is_file()]
    split = check_split(base, split, there)
    ids = read_lines(lists / f"{split}.txt")
    if len(set(ids)) < len(ids):
        twice = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise BadDataError(f"{lists / split}.txt: names {twice!r} twice; remove one of the two")
    listed = _from_lists([lists / f"{name}_{split}.txt" for name in CLASSES], ids)
    annotations = base / "Annotations"
    if listed is not None and not annotations.is_dir():
        return ids, listed
    rows = [_from_annotation(annotations / f"{name}.xml") for name in ids]
    seen = np.array(rows, np.int8).reshape(len(ids), len(CLASSES))
    if listed is not None and (differs := np.argwhere(seen != listed)).size:
        i, j = differs[0]
        raise BadDataError(
            f"{lists}/{CLASSES[j]}_{split}.txt: has {listed[i, j]} for image {ids[i]!r}, but "
            f"{annotations / ids[i]}.xml says {seen[i, j]}; extract the whole dataset again"
        )
    return ids, seen


def _from_lists(files: list[Path], ids: list[str]) -> NDArray[np.int8] | None:
    """Read labels of shape (n, 20) from the lists; None if there are no lists."""
    missing = [file for file in files if not file.is_file()]
    if missing and len(missing) < len(files):
        raise BadDataError(
            f"{missing[0]}: missing, but {len(files) - len(missing)} of {len(files)} classes have "
            "a list of this split; extract the whole dataset"
        )
    _, _, of_split = files[0].name.rpartition("_")
    if extra := sorted(set(files[0].parent.glob(f"*_{of_split}")) - set(files)):
        raise BadDataError(
            f"{extra[0]}: not a list of one of the {len(CLASSES)} classes of VOC 2007; remove it"
        )
    return None if missing else np.stack([_from_list(file, ids) for file in files], axis=1)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a list that are not empty, without blanks around them."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _from_list(path: Path, ids: list[str]) -> NDArray[np.int8]:
    """Read the labels of one class, shape (n,), in the order of the ids."""
    found: dict[str, int] = {}
    for line in read_lines(path):
        name, _, value = line.partition(" ")
        if value.strip() not in _VALUES:
            raise BadDataError(
                f"{path}: {line!r} is not ID and 1, 0 or -1; extract the dataset again"
            )
        if name in found:
            raise BadDataError(f"{path}: lists image {name!r} twice; extract the dataset again")
        found[name] = _VALUES[value.strip()]
    if missing := [name for name in ids if name not in found]:
        raise BadDataError(
            f"{path}: has no label for image {missing[0]!r}; extract the dataset again"
        )
    if len(found) > len(ids):
        extra = next(iter(found.keys() - set(ids)))
        raise BadDataError(
            f"{path}: has {len(found):,} images, but the split has {len(ids):,}: {extra!r} is not "
            "in it; extract the dataset again"
        )
    return np.array([found[name] for name in ids], np.int8)


def _from_annotation(path: Path) -> NDArray[np.int8]:
    """Read the labels of one image, shape (20,)."""
    labels = np.full(len(CLASSES), ABSENT, np.int8)
    for thing in read_annotation(path).findall("object"):
        label = class_of(
            thing,
            path,
            fix=f"to use the images without labels name {path.parent.parent / 'JPEGImages'}",
        )
        if is_difficult(thing, path):
            labels[label] = max(labels[label], UNCOUNTED)
        else:
            labels[label] = PRESENT
    return labels


def read_annotation(path: Path) -> ElementTree.Element:
    """Parse ``Annotations/ID.xml``; entities are refused.

    Raises:
        BadDataError: it is missing, or not XML without entities.
    """
    try:
        text = path.read_bytes().decode()  # as text, so that it cannot declare another encoding
        if "<!ENTITY" in text or "<!DOCTYPE" in text:
            raise ValueError("it declares entities, which no annotation has")
        return ElementTree.fromstring(text)
    except FileNotFoundError:
        raise BadDataError(
            f"{path}: missing, but a split has this image; extract the whole dataset"
        ) from None
    except (ValueError, ElementTree.ParseError) as error:
        raise BadDataError(f"{path}: not an annotation of VOC 2007: {error}") from None


def class_of(
    thing: ElementTree.Element, path: Path, *, fix: str = "correct it, or unpack the dataset again"
) -> int:
    """Return the class of an ``object``, an index into ``CLASSES``.

    Args:
        thing: the ``object``.
        path: file that it is in, for the message.
        fix: what to do about a class that is none of them.

    Raises:
        BadDataError: it is none of them.
    """
    name = thing.findtext("name", "").strip()
    if name not in CLASSES:
        raise BadDataError(
            f"{path}: class {name!r} is not one of the {len(CLASSES)} of VOC 2007; {fix}"
        )
    return CLASSES.index(name)


def is_difficult(thing: ElementTree.Element, path: Path) -> bool:
    """Return whether an ``object`` is marked difficult; the benchmark does not count it.

    Raises:
        BadDataError: the mark is neither 0 nor 1.
    """
    mark = thing.findtext("difficult", "0").strip()
    if mark not in ("0", "1"):
        raise BadDataError(
            f"{path}: an object has <difficult>{mark}</difficult>, which must be 0 or 1; correct "
            "it, or unpack the dataset again"
        )
    return mark == "1"
