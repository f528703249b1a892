"""Lists that give the label of each image: ImageNet's, and lists with one image per line.

For ImageNet these are Kaggle's, Caffe's or the devkit's; Caffe's, like those of Places205, have the
name of an image and its label on each line. Importing this module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrot.errors import BadDataError

NUM_CLASSES = 1000
_DEVKIT = ("ILSVRC2012_devkit_t12/data", "devkit/data", "meta")
_NUMBER = re.compile(r"[0-9]{1,9}")


class LabelList(NamedTuple):
    """A list of n images: their names, labels of shape (n,), int64, and the class names."""

    names: Sequence[str]
    labels: NDArray[np.int64]
    class_names: Sequence[str]


def find_list(root: Path, base: Path, split: str) -> Path | None:
    """Return the first list of a split that exists, among those that ``read_list`` supports.

    Args:
        root: the folder that the user named.
        base: the folder with ``train/`` and ``val/``.
        split: train or val.
    """
    places = [folder / f"LOC_{split}_solution.csv" for folder in (root, root.parent, base)]
    places += [base / "meta" / f"{split}.txt", base / f"{split}.txt"]
    if split == "val":
        places += [base / name / "ILSVRC2012_validation_ground_truth.txt" for name in _DEVKIT]
    return next((place for place in places if place.is_file()), None)


def read_list(path: Path, split: str, wnids: Sequence[str]) -> LabelList:
    """Read a list of any supported kind.

    Args:
        path: the list, from ``find_list``.
        split: train or val.
        wnids: the classes of ``train``, in order; if empty, those of the list are used.

    Raises:
        BadDataError: it is damaged, or has a class that ``train`` does not have.
        OSError: as the system reports it.
    """
    if path.suffix == ".csv":
        return _read_kaggle(path, wnids)
    if path.name == f"{split}.txt":
        names, labels = read_labelled_list(path, num_classes=NUM_CLASSES)
        return LabelList(names, labels, wnids or [str(i) for i in range(NUM_CLASSES)])
    return _read_devkit(path, wnids)


def read_labelled_list(path: Path, *, num_classes: int) -> tuple[list[str], NDArray[np.int64]]:
    """Read names, and labels of shape (n,), int64, in the order of the file.

    Args:
        path: the file.
        num_classes: labels must be below this number.

    Raises:
        BadDataError: a line is not a name and a label.
        OSError: as the system reports it.
    """
    names: list[str] = []
    labels: list[int] = []
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            *name, label = line.rsplit(maxsplit=1) or [""]
            # At most nine digits and no sign: int() accepts more than a list may contain.
            if name and _NUMBER.fullmatch(label) and int(label) < num_classes:
                names.append(name[0].lstrip())
                labels.append(int(label))
            elif label:
                raise BadDataError(
                    f"{path}: line {number}, {line.strip()[:200]!r}, is not the name of an image "
                    f"and a label below {num_classes}; create the list or extract the dataset again"
                )
    return names, np.array(labels, np.int64)


def _read_kaggle(path: Path, wnids: Sequence[str]) -> LabelList:
    """Read lines ``ILSVRC2012_val_00000001,n01751748 111 108 230 366 ...`` after a header line."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[1:]
    pairs = [line.split(",", 1) for line in lines if line.strip()]
    try:
        classes = [rest.split(" ", 1)[0] for _, rest in pairs]
        class_names = wnids or sorted(set(classes))
        numbers = {name: i for i, name in enumerate(class_names)}
        labels = np.array([numbers[name] for name in classes], np.int64)
    except (ValueError, KeyError) as error:
        raise BadDataError(
            f"{path}: not Kaggle's list of image and class ({error} is not a class in train/); "
            "download it again"
        ) from None
    return LabelList([f"{name}.JPEG" for name, _ in pairs], labels, class_names)


def _read_devkit(path: Path, wnids: Sequence[str]) -> LabelList:
    """Read one class number per line, in the devkit's own order, which ``meta.mat`` resolves."""
    table = path.with_name("meta.mat")
    if not table.is_file():
        raise BadDataError(f"{table}: missing: it gives the class of each number in {path.name}")
    from scipy.io import loadmat  # imported here: this takes longer than most commands

    try:
        synsets = loadmat(table, squeeze_me=True)["synsets"]
        of_number = {
            int(row["ILSVRC2012_ID"]): str(row["WNID"])
            for row in synsets
            if int(row["ILSVRC2012_ID"]) <= NUM_CLASSES
        }
        class_names = wnids or sorted(of_number.values())
        position = {name: i for i, name in enumerate(class_names)}
        numbers = [int(line) for line in path.read_text(encoding="ascii").split()]
        labels = np.array([position[of_number[number]] for number in numbers], np.int64)
    except (ValueError, KeyError, TypeError, IndexError, NotImplementedError) as error:
        raise BadDataError(
            f"{path}: this file and meta.mat are not those of ImageNet's devkit: "
            f"{type(error).__name__}: {error}; extract the devkit again"
        ) from None
    names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, len(numbers) + 1)]
    return LabelList(names, labels, class_names)
