"""Places205: 2.4 million scenes in 205 classes.

``trainvalsplit_places205/train_places205.csv`` and ``val_places205.csv`` have a name and a label
per line (``a/abbey/gsun_0a1b.jpg 0``); names are relative to ``images256``, which the archive puts
into ``data/vision/torralba/deeplearning/``. The name of a class is that of its folder
(``a/apartment_building/outdoor``). Importing this module does not import torch.
"""

from __future__ import annotations

from pathlib import Path

from fastrot.data.sources.class_folders import (
    ImageList,
    check_every_class,
    check_none_unlisted,
    one_folder_a_class,
)
from fastrot.data.sources.image_lists import read_labelled_list
from fastrot.data.sources.listing import Source, check_split, listed_source
from fastrot.errors import UsageError

NUM_CLASSES = 205

_SPLITS = ("train", "val")
_FOLDERS = ("data/vision/torralba/deeplearning/images256", "images256")


def find(root: Path) -> Path | None:
    """Return the folder with the lists (``root`` or the usual folder in it), or None."""
    for folder in (root / "trainvalsplit_places205", root):
        if any(_list(folder, split).is_file() for split in _SPLITS):
            return folder
    return None


def list_places(root: Path, split: str | None, boundary: Path | None) -> Source:
    """List one split, with labels of shape (n,).

    Args:
        root: the folder with ``trainvalsplit_places205/`` and the images.
        split: train or val.
        boundary: folder that no link may lead out of; None: links may lead anywhere.

    Raises:
        UsageError: the layout is a different one, or the split does not exist.
        BadDataError: a list is damaged, has the wrong number of classes, contradicts the folders
            of its images or the other list, or an image in it is missing.
        OSError: as the system reports it.
    """
    lists = find(root)
    if lists is None:
        raise UsageError(
            f"{root}: not Places205, which has trainvalsplit_places205/train_places205.csv; "
            "name the folder with it, or choose another --kind"
        )
    there = [name for name in _SPLITS if _list(lists, name).is_file()]
    split = check_split(lists, split, there)
    images = next((root / name for name in _FOLDERS if (root / name).is_dir()), root)
    read = {
        part: ImageList(path, *read_labelled_list(path, num_classes=NUM_CLASSES))
        for part, path in ((part, _list(lists, part)) for part in there)
    }
    classes = one_folder_a_class(tuple(read.values()))
    for listed in read.values():
        check_every_class(listed, NUM_CLASSES)
    path, names, labels = read[split]
    source = listed_source(
        images,
        "places205",
        names=names,
        labels=labels,
        class_names=[classes[i] for i in range(NUM_CLASSES)],
        listed_in=path,
        boundary=boundary,
    )
    check_none_unlisted(images, "places205", read)
    return source


def _list(folder: Path, split: str) -> Path:
    return folder / f"{split}_places205.csv"
