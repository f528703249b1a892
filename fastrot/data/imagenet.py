"""ImageNet 2012: 1,000 classes, named by their WordNet ids.

``train/WNID/x.JPEG``, and ``val/`` with the same class folders or flat. Labels of a flat ``val``
come from the first of these that is there: ``LOC_val_solution.csv`` (with Kaggle's layout,
``ILSVRC/Data/CLS-LOC/``), a list ``meta/val.txt`` (name and label a line, as Caffe's), or the
devkit (``ILSVRC2012_validation_ground_truth.txt`` with ``meta.mat``). Classes are numbered in the
order of their WordNet ids, whichever of them a part has. Importing this module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrot.data.folders import scan_folder, walk_folder
from fastrot.data.labelled_list import read_labelled_list
from fastrot.data.listing import Source, listed_source, make_source
from fastrot.errors import BadDataError, UsageError

_SPLITS = ("train", "val")
_WNID = re.compile(r"n[0-9]{8}")
_DEVKIT = ("ILSVRC2012_devkit_t12/data", "devkit/data", "meta")
_MAX_CLASSES = 1000

_Labelled = tuple[Sequence[str], NDArray[np.int64], Sequence[str]]  # names, labels, class names


def has_flat_val(root: Path) -> bool:
    """Whether this is an ImageNet whose ``val`` needs a list, and has one."""
    base = _base(root)
    if base is None or not _wnids(base):
        return False
    val = base / "val"
    flat = val.is_dir() and not scan_folder(val, ".", None).folders
    return flat and _label_file(root, base, "val") is not None


def list_imagenet(root: Path, split: str | None, boundary: Path | None) -> Source:
    """List one split: labels of shape (n,).

    Args:
        root: the folder with ``train/`` and ``val/``, or Kaggle's ``ILSVRC/``.
        split: train or val.
        boundary: no link may lead out of this folder; None: links may lead anywhere.

    Raises:
        UsageError: no such layout, no such split, or no labels of a flat ``val``.
        BadDataError: a list is damaged, or an image of it is missing.
        OSError: as the system reports it.
    """
    base = _base(root)
    if base is None:
        raise UsageError(
            f"{root}: not ImageNet, which has train/ with folders like n01440764, and val/; "
            "name the folder with both, or choose another --kind"
        )
    there = [name for name in _SPLITS if (base / name).is_dir()]
    if split not in there:
        asked = "has several parts" if split is None else f"has no split {split!r}"
        raise UsageError(f"{base} {asked}: choose --split {' or '.join(there)}")
    top = scan_folder(base / split, ".", boundary)
    wnids = _wnids(base)
    if top.folders and not top.images:
        return _from_folders(base / split, top.folders, wnids or top.folders, boundary)
    lists = _label_file(root, base, split)
    if lists is None:
        raise UsageError(
            f"{base / split}: images without class folders, and no list of their labels: put "
            f"meta/{split}.txt (lines of name and label) beside {split}/, or sort the images into "
            "class folders"
        )
    names, labels, class_names = _read(lists, split, wnids)
    return listed_source(
        base / split,
        "imagenet",
        names=names,
        labels=labels,
        class_names=class_names,
        listed_in=lists,
        boundary=boundary,
    )


def _base(root: Path) -> Path | None:
    for folder in (root, root / "ILSVRC" / "Data" / "CLS-LOC", root / "Data" / "CLS-LOC"):
        if any((folder / split).is_dir() for split in _SPLITS):
            return folder
    return None


def _wnids(base: Path) -> list[str]:
    """The classes of ``train``, in order; empty where it has other folders, or none."""
    folder = base / "train"
    found = scan_folder(folder, ".", None).folders if folder.is_dir() else []
    return found if all(map(_WNID.fullmatch, found)) else []


def _from_folders(
    folder: Path, folders: list[str], class_names: list[str], boundary: Path | None
) -> Source:
    numbers = {name: i for i, name in enumerate(class_names)}
    found: list[tuple[str, int]] = []
    labels: list[int] = []
    for name in folders:
        if not _WNID.fullmatch(name) or name not in numbers:
            raise BadDataError(
                f"{folder}: folder {name!r} is none of the {len(numbers):,} classes of ImageNet "
                "in train/; remove it, or use --kind folder"
            )
        images = sorted(walk_folder(folder, name, boundary))
        found += images
        labels += [numbers[name]] * len(images)
    if not found:
        raise BadDataError(f"{folder}: no image in its class folders; unpack it again")
    return make_source(
        folder,
        "imagenet",
        paths=[name for name, _ in found],
        sizes=np.array([size for _, size in found], np.int64),
        labels=np.array(labels, np.int64),
        class_names=class_names,
    )


def _label_file(root: Path, base: Path, split: str) -> Path | None:
    places = [folder / f"LOC_{split}_solution.csv" for folder in (root, root.parent, base)]
    places += [base / "meta" / f"{split}.txt", base / f"{split}.txt"]
    if split == "val":
        places += [base / name / "ILSVRC2012_validation_ground_truth.txt" for name in _DEVKIT]
    return next((place for place in places if place.is_file()), None)


def _read(path: Path, split: str, wnids: list[str]) -> _Labelled:
    if path.suffix == ".csv":
        return _read_kaggle(path, wnids)
    if path.name == f"{split}.txt":
        names, labels = read_labelled_list(path, num_classes=len(wnids) or _MAX_CLASSES)
        return names, labels, wnids or [str(i) for i in range(int(labels.max(initial=0)) + 1)]
    return _read_devkit(path, wnids)


def _read_kaggle(path: Path, wnids: list[str]) -> _Labelled:
    """Lines ``ILSVRC2012_val_00000001,n01751748 111 108 230 366 ...`` behind one of headings."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[1:]
    pairs = [line.split(",", 1) for line in lines if line.strip()]
    try:
        classes = [rest.split(" ", 1)[0] for _, rest in pairs]
        class_names = wnids or sorted(set(classes))
        numbers = {name: i for i, name in enumerate(class_names)}
        labels = np.array([numbers[name] for name in classes], np.int64)
    except (ValueError, KeyError) as error:
        raise BadDataError(
            f"{path}: not Kaggle's list of image and class ({error} is no class of train/); "
            "download it again"
        ) from None
    return [f"{name}.JPEG" for name, _ in pairs], labels, class_names


def _read_devkit(path: Path, wnids: list[str]) -> _Labelled:
    """One number a line, in the devkit's own order of classes, which ``meta.mat`` resolves."""
    table = path.with_name("meta.mat")
    if not table.is_file():
        raise BadDataError(f"{table}: missing: it says which class a number of {path.name} means")
    from scipy.io import loadmat  # here: importing it takes longer than most commands

    try:
        synsets = loadmat(table, squeeze_me=True)["synsets"]
        of_number = {
            int(row["ILSVRC2012_ID"]): str(row["WNID"])
            for row in synsets
            if int(row["ILSVRC2012_ID"]) <= _MAX_CLASSES
        }
        class_names = wnids or sorted(of_number.values())
        position = {name: i for i, name in enumerate(class_names)}
        numbers = [int(line) for line in path.read_text(encoding="ascii").split()]
        labels = np.array([position[of_number[number]] for number in numbers], np.int64)
    except (ValueError, KeyError, TypeError, IndexError, NotImplementedError) as error:
        raise BadDataError(
            f"{path}: it and meta.mat are not those of ImageNet's devkit: "
            f"{type(error).__name__}: {error}; unpack it again"
        ) from None
    names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, len(numbers) + 1)]
    return names, labels, class_names
