"""Cityscapes: street scenes of 2,048 x 1,024 pixels with 19 classes.

``leftImg8bit/SPLIT/CITY/x_leftImg8bit.png`` is an image, and its label map is
``gtFine/SPLIT/CITY/x_gtFine_labelIds.png``. Of the 34 ids in it, 19 are evaluated and numbered from
0 on, in the order of their ids; all others are ignored. Importing this module imports no torch.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastrot.data.annotations.counts import check_count
from fastrot.data.annotations.images import ImageList, link_boundary, listing
from fastrot.data.annotations.label_maps import IGNORE, value_map
from fastrot.data.annotations.segmentation import SegmentationDataset
from fastrot.data.sources.listing import check_split
from fastrot.errors import BadDataError, UsageError

EVALUATED = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""Names of the classes by their id in the label maps."""

_NUM_IDS = 34
_SPLITS = ("train", "val")  # the labels of test are not public
_IMAGE, _LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"


def open_cityscapes(
    path: str | Path, split: str, *, partial: bool = False, follow_symlinks: bool = False
) -> SegmentationDataset:
    """Open one split.

    Args:
        path: the folder with ``leftImg8bit/`` and ``gtFine/``.
        split: train or val.
        partial: also accept a split that is not whole.
        follow_symlinks: also follow links that lead out of the folder.

    Raises:
        UsageError: the layout is not that of Cityscapes, or the split does not exist.
        BadDataError: an image lacks its label map or a label map its image, or the split is not
            whole.
        StorageError: the folder cannot be read.

    Example:
        >>> val = open_cityscapes("cityscapes", "val")
        >>> val.class_names[val.target(0).labels[700, 1000]]
        'road'
    """
    root = Path(path)
    with listing(root):
        images, labels = root / "leftImg8bit", root / "gtFine"
        if not images.is_dir() or not labels.is_dir():
            raise UsageError(
                f"{root}: not Cityscapes, which has leftImg8bit/ and gtFine/; name the folder with "
                "both"
            )
        check_split(root, split, [name for name in _SPLITS if (images / name).is_dir()])
        names = sorted(_scenes(images / split, _IMAGE) | _scenes(labels / split, _LABELS))
        if not names:
            raise BadDataError(
                f"{images / split}: no image CITY/x{_IMAGE}; extract the dataset again"
            )
        note = check_count("Cityscapes", split, len(names), images / split, partial=partial)
        boundary = link_boundary(root, follow_symlinks=follow_symlinks)
        found = ImageList(
            path=Path(f"{path}:{split}"),
            root=root,
            names=[f"leftImg8bit/{split}/{name}{_IMAGE}" for name in names],
            listed_in=labels / split,
            class_names=tuple(EVALUATED.values()),
            boundary=boundary,
            note=note,
        )
        files = [labels / split / f"{name}{_LABELS}" for name in names]
        classes = dict.fromkeys(range(_NUM_IDS), IGNORE)
        classes |= {number: k for k, number in enumerate(EVALUATED)}
        boundaries = None if boundary is None else [boundary]
        return SegmentationDataset(found, files, value_map(classes), boundaries)


def _scenes(folder: Path, ending: str) -> set[str]:
    """Return the files CITY/x with this ending, without it."""
    found: set[str] = set()
    for city in sorted(os.listdir(folder)) if folder.is_dir() else []:
        if (folder / city).is_dir():
            names = os.listdir(folder / city)
            found |= {f"{city}/{n.removesuffix(ending)}" for n in names if n.endswith(ending)}
    return found
