"""PASCAL VOC for detection: ``VOCdevkit/VOC2007`` and ``VOC2012``, parts of either or both.

A part is a year and a split: ``ImageSets/Main/SPLIT.txt`` names its images, and every one needs
``Annotations/ID.xml``. VOC counts pixels from 1 and includes the last one: a box over the first
pixel alone is 1, 1, 1, 1 there and 0, 0, 1, 1 here. Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrot.data.annotations.counts import check_count
from fastrot.data.annotations.detection import DetectionDataset
from fastrot.data.annotations.images import ImageList, link_boundary, listing
from fastrot.data.annotations.objects import OBJECT, ObjectTable, check_boxes, check_sizes
from fastrot.data.sources.listing import check_split
from fastrot.data.sources.voc import CLASSES, class_of, is_difficult, read_annotation, read_lines
from fastrot.errors import BadDataError, UsageError

_SPLITS = ("trainval", "test", "train", "val")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def open_voc_detection(
    path: str | Path,
    parts: Sequence[tuple[int, str]],
    *,
    partial: bool = False,
    follow_symlinks: bool = False,
) -> DetectionDataset:
    """Open parts of VOC as one dataset, with its 20 classes in their order.

    Args:
        path: VOCdevkit, the folder that contains it, or VOC2007 if all parts are of 2007.
        parts: years and splits, such as ``[(2007, "trainval"), (2012, "trainval")]``.
        partial: also accept parts that are not whole.
        follow_symlinks: also follow links that lead out of the folder.

    Raises:
        UsageError: the layout is not VOC's, or a split does not exist.
        BadDataError: a list, an annotation or an image is missing or damaged, a box leaves its
            image, a class is none of VOC's, or a part is not whole.
        StorageError: the folder cannot be read.

    Example:
        >>> train = open_voc_detection("VOCdevkit", [(2007, "trainval"), (2012, "trainval")])
        >>> train.target(0).boxes.shape
        (3, 4)
    """
    root = Path(path)
    with listing(root):
        base = find_devkit(root, [year for year, _ in parts])
        notes: list[str] = []
        names: list[str] = []
        lists = base
        for year, split in parts:
            folder = base / f"VOC{year}"
            sets = folder / "ImageSets" / "Main"
            there = [f"{year}-{s}" for s in _SPLITS if (sets / f"{s}.txt").is_file()]
            check_split(folder, f"{year}-{split}", there)
            lists = sets / f"{split}.txt"
            ids = read_lines(lists)
            notes.append(check_count(f"VOC{year}", split, len(ids), lists, partial=partial))
            names += [f"VOC{year}/JPEGImages/{name}.jpg" for name in ids]
        names.sort()
        images = ImageList(
            path=Path(f"{path}:{'+'.join(f'{year}-{split}' for year, split in parts)}"),
            root=base,
            names=names,
            listed_in=lists,
            class_names=CLASSES,
            boundary=link_boundary(root, follow_symlinks=follow_symlinks),
            note="; ".join(filter(None, notes)),
        )
        return DetectionDataset(images, _read_objects(base, names))


def find_devkit(root: Path, years: Sequence[int]) -> Path:
    """Return the folder that contains VOC2007 and the like for all years.

    Raises:
        UsageError: there is none.
    """
    inside = [root, root / "VOCdevkit"]
    if {root.name} == {f"VOC{year}" for year in years}:
        inside.append(root.resolve().parent)
    for base in inside:
        if all((base / f"VOC{year}" / "ImageSets").is_dir() for year in years):
            return base
    wanted = [f"VOC{year}" for year in sorted(set(years))]
    for base in inside:
        there = [name for name in wanted if (base / name / "ImageSets").is_dir()]
        if there:
            lacking = " and ".join(name for name in wanted if name not in there)
            raise UsageError(
                f"{base}: has {' and '.join(there)}, but no {lacking}/ImageSets/; name a folder "
                "with both, or other parts, as --set dense.train_splits=[2007-trainval]"
            )
    folders = " and ".join(f"{name}/ImageSets/" for name in wanted)
    raise UsageError(f"{root}: contains no {folders}; name the folder VOCdevkit that does")


def _read_objects(base: Path, names: Sequence[str]) -> ObjectTable:
    """Read the annotations of the images, in the order of the names."""
    sizes = np.zeros((len(names), 2), np.int32)
    objects: list[tuple[object, ...]] = []
    paths: list[Path] = []
    for image, name in enumerate(names):
        path = base / name.replace("/JPEGImages/", "/Annotations/").replace(".jpg", ".xml")
        paths.append(path)
        annotation = read_annotation(path)
        try:
            sizes[image] = [int(annotation.findtext(f"size/{k}", "")) for k in ("width", "height")]
            for thing in annotation.findall("object"):
                x1, y1, x2, y2 = (float(thing.findtext(f"bndbox/{key}", "")) for key in _CORNERS)
                width, height = x2 - x1 + 1, y2 - y1 + 1
                objects.append(
                    (
                        image,
                        (x1 - 1, y1 - 1, width, height),
                        class_of(thing, path),
                        width * height,
                        False,
                        is_difficult(thing, path),
                        len(objects),
                    )
                )
        except (ValueError, OverflowError) as error:
            raise BadDataError(
                f"{path}: a size or a box is not made of numbers ({error}); extract the dataset "
                "again"
            ) from None
    table: NDArray[np.void] = np.array(objects, OBJECT)
    where = table["image"]
    check_sizes(sizes, lambda i: str(paths[i]))
    check_boxes(table["box"], sizes[where], lambda i: str(paths[where[i]]))
    return ObjectTable(np.arange(1, len(names) + 1), sizes, table)
