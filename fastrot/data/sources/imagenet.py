"""ImageNet 2012: 1,000 classes, named by their WordNet ids.

``train/WNID/x.JPEG``, and ``val/`` with the same class folders or flat. Labels of a flat ``val``
come from the first of these that exists: ``LOC_val_solution.csv`` (with Kaggle's layout,
``ILSVRC/Data/CLS-LOC/``), a list ``meta/val.txt`` (one name and label per line, like Caffe's), or
the devkit (``ILSVRC2012_validation_ground_truth.txt`` with ``meta.mat``). Classes are numbered in
the order of their WordNet ids. ``val`` has the same number of images per class, so a wrong label
is found. A part of ImageNet is read as class folders, with the kind ``folder``. Importing this
module does not import torch.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from fastrot.data.left_out import LeftOut
from fastrot.data.sources.folders import scan_folder, walk_folder
from fastrot.data.sources.image_lists import NUM_CLASSES, LabelList, find_list, read_list
from fastrot.data.sources.listing import Source, check_split, listed_source, make_source
from fastrot.errors import BadDataError, UsageError

_SPLITS = ("train", "val")
_OWN_CLASS = re.compile(r"(n[0-9]{8})_")
_WNID = re.compile(r"n[0-9]{8}")
_PARTLY = "read a part of ImageNet as class folders, with --kind folder"


def has_flat_val(root: Path) -> bool:
    """Return whether this is ImageNet with a ``val`` that needs a list and has one."""
    base = _base(root)
    if base is None or not _wnids(base):
        return False
    val = base / "val"
    flat = val.is_dir() and not scan_folder(val, ".", None).folders
    return flat and find_list(root, base, "val") is not None


def list_imagenet(root: Path, split: str | None, boundary: Path | None) -> Source:
    """List one split, with labels of shape (n,).

    Args:
        root: the folder with ``train/`` and ``val/``, or Kaggle's ``ILSVRC/``.
        split: train or val.
        boundary: folder that no link may lead out of; None: links may lead anywhere.

    Raises:
        UsageError: the layout or split does not exist, or a flat ``val`` has no labels.
        BadDataError: a list is damaged or lists other images, an image in it is missing, a split
            has other classes, an image is in the folder of another class, or ``val`` has more
            images of one class than of another.
        OSError: as the system reports it.
    """
    base = _base(root)
    if base is None:
        raise UsageError(
            f"{root}: not ImageNet, which has train/ with folders like n01440764, and val/; "
            "name the folder with both, or choose another --kind"
        )
    there = [name for name in _SPLITS if (base / name).is_dir()]
    split = check_split(base, split, there)
    left_out = LeftOut()
    top = scan_folder(base / split, ".", boundary, left_out)
    wnids = _wnids(base)
    if wnids:
        _check_count(base / "train", len(wnids))
    if top.folders and not top.images:
        source = _from_folders(base / split, top.folders, wnids, boundary, left_out)
    elif (path := find_list(root, base, split)) is not None:
        images = [name for name, _ in top.images]
        listed = read_list(path, split, wnids)
        source = _from_list(base / split, images, path, listed, boundary, left_out)
    else:
        raise UsageError(
            f"{base / split}: images without class folders, and no list of their labels: put "
            f"meta/{split}.txt (lines of name and label) beside {split}/, or sort the images into "
            "class folders"
        )
    if split == "val":
        _check_balance(base / split, source)
    return source


def _base(root: Path) -> Path | None:
    for folder in (root, root / "ILSVRC" / "Data" / "CLS-LOC", root / "Data" / "CLS-LOC"):
        if any((folder / split).is_dir() for split in _SPLITS):
            return folder
    return None


def _wnids(base: Path) -> list[str]:
    """Return the WordNet ids of the folders in ``train``, in order.

    Empty if any folder is named otherwise, or there are none.
    """
    folder = base / "train"
    found = scan_folder(folder, ".", None).folders if folder.is_dir() else []
    return found if all(map(_WNID.fullmatch, found)) else []


def _from_folders(
    folder: Path,
    folders: list[str],
    wnids: list[str],
    boundary: Path | None,
    left_out: LeftOut,
) -> Source:
    expected = set(wnids or filter(_WNID.fullmatch, folders))
    if extra := [name for name in folders if name not in expected]:
        raise BadDataError(
            f"{folder}: folder {extra[0]!r} is not a class of ImageNet"
            f"{' in train/' if wnids else ''}; remove it, or {_PARTLY}"
        )
    if lacking := [name for name in wnids if name not in folders]:
        raise BadDataError(
            f"{folder}: no folder {lacking[0]!r}, which is a class in train/; extract the "
            "dataset again, or "
            f"{_PARTLY}"
        )
    _check_count(folder, len(folders))
    found: list[tuple[str, int]] = []
    labels: list[int] = []
    for label, name in enumerate(folders):
        images = sorted(walk_folder(folder, name, boundary, left_out))
        if not images:
            raise BadDataError(f"{folder / name}: no image in this class folder; extract it again")
        for path, _ in images:
            if (own := _OWN_CLASS.match(os.path.basename(path))) and own[1] != name:
                raise BadDataError(
                    f"{folder / path}: named as an image of class {own[1]}, but in the folder "
                    f"of {name}; extract the dataset again"
                )
        found += images
        labels += [label] * len(images)
    return make_source(
        folder,
        "imagenet",
        paths=[name for name, _ in found],
        sizes=np.array([size for _, size in found], np.int64),
        labels=np.array(labels, np.int64),
        class_names=folders,
        left_out=left_out,
    )


def _from_list(
    folder: Path,
    images: list[str],
    path: Path,
    listed: LabelList,
    boundary: Path | None,
    left_out: LeftOut,
) -> Source:
    _check_count(path, len(listed.class_names))
    if extra := sorted(set(images) - set(listed.names)):
        raise BadDataError(
            f"{path}: names {len(listed.names):,} images, but {len(extra):,} others are there, the "
            f"first {extra[0]!r} in {folder}; the list was cut short or belongs to another dataset"
        )
    return listed_source(
        folder,
        "imagenet",
        names=listed.names,
        labels=listed.labels,
        class_names=listed.class_names,
        listed_in=path,
        boundary=boundary,
        left_out=left_out,
    )


def _check_count(path: Path, count: int) -> None:
    if count != NUM_CLASSES:
        raise BadDataError(
            f"{path}: {count:,} classes; ImageNet 2012 has {NUM_CLASSES:,}; extract the "
            f"dataset again, or {_PARTLY}"
        )


def _check_balance(folder: Path, source: Source) -> None:
    assert source.class_names is not None
    counts = np.bincount(source.labels, minlength=NUM_CLASSES)
    most, least = counts.argmax(), counts.argmin()
    if counts[most] != counts[least]:
        raise BadDataError(
            f"{folder}: {counts[most]} images of class {source.class_names[most]} and "
            f"{counts[least]} of {source.class_names[least]}, but in ImageNet all classes have the "
            f"same number; correct the labels or extract the dataset again, or {_PARTLY}"
        )
