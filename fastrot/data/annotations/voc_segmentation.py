"""PASCAL VOC 2012 for segmentation, alone or with the further label maps of SBD.

``ImageSets/Segmentation/SPLIT.txt`` names the images, ``SegmentationClass/ID.png`` are their label
maps: background and 20 classes, and 255 along the edges of objects. SBD (Hariharan et al., 2011)
labels more images of VOC in ``dataset/cls/ID.mat``; the published protocol trains on ``trainaug``:
the images of VOC's train and of both splits of SBD, without those of VOC's val. An image of VOC's
train keeps VOC's label map. Importing this module imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from fastrot.data.annotations.counts import check_count
from fastrot.data.annotations.images import ImageList, link_boundary, listing
from fastrot.data.annotations.label_maps import IGNORE, value_map
from fastrot.data.annotations.segmentation import SegmentationDataset
from fastrot.data.annotations.voc_detection import find_devkit
from fastrot.data.sources.listing import check_split
from fastrot.data.sources.voc import CLASSES as OBJECT_CLASSES
from fastrot.data.sources.voc import read_lines
from fastrot.errors import BadDataError, UsageError

CLASSES = ("background", *OBJECT_CLASSES)
"""Names of the 21 classes, in the order of their numbers."""

_NAME = "VOC2012 segmentation"
_SPLITS = ("train", "val", "trainval")


def open_voc_segmentation(
    path: str | Path,
    split: str,
    *,
    sbd: str | Path | None = None,
    partial: bool = False,
    follow_symlinks: bool = False,
) -> SegmentationDataset:
    """Open one split of VOC 2012.

    Args:
        path: VOC2012, VOCdevkit, or the folder that contains it.
        split: train, val, trainval; or trainaug, which needs ``sbd``.
        sbd: the folder of SBD with ``dataset/cls``, or ``dataset`` itself; for trainaug alone.
        partial: also accept a split that is not whole.
        follow_symlinks: also follow links that lead out of the folders.

    Raises:
        UsageError: the layout is not VOC's or SBD's, or the split does not exist.
        BadDataError: a list, an image or a label map is missing, or the split is not whole.
        StorageError: a folder cannot be read.

    Example:
        >>> val = open_voc_segmentation("VOCdevkit", "val")
        >>> val.target(0).labels.shape
        (366, 500)
    """
    root = Path(path)
    augmented = split == "trainaug"
    if augmented and sbd is None:
        raise UsageError("the split trainaug needs the labels of SBD: --set dense.sbd=FOLDER")
    with listing(root):
        base = find_devkit(root, [2012]) / "VOC2012"
        sets = base / "ImageSets" / "Segmentation"
        there = [name for name in _SPLITS if (sets / f"{name}.txt").is_file()]
        own = check_split(base, "train" if augmented else split, there)
        lists = sets / f"{own}.txt"
        ids = read_lines(lists)
        note = check_count(_NAME, own, len(ids), lists, partial=partial)
        labels = {name: base / "SegmentationClass" / f"{name}.png" for name in ids}
        boundaries = [link_boundary(root, follow_symlinks=follow_symlinks)]
        if sbd is not None and augmented:
            check_split(base, "val", there)
            more = _more_labels(Path(sbd), partial)
            for held_out in read_lines(sets / "val.txt"):
                more.pop(held_out, None)
            labels = more | labels
            ids = list(labels)
            note = check_count(_NAME, split, len(ids), lists, partial=partial)
            boundaries.append(link_boundary(Path(sbd), follow_symlinks=follow_symlinks))
        ids.sort()
        images = ImageList(
            path=Path(f"{path}:{split}"),
            root=base,
            names=[f"JPEGImages/{name}.jpg" for name in ids],
            listed_in=lists,
            class_names=CLASSES,
            boundary=boundaries[0],
            note=note,
        )
        known = [boundary for boundary in boundaries if boundary is not None]
        values = value_map({**{k: k for k in range(len(CLASSES))}, IGNORE: IGNORE})
        return SegmentationDataset(images, [labels[i] for i in ids], values, known or None)


def _more_labels(root: Path, partial: bool) -> dict[str, Path]:
    """Return the label maps of SBD by the name of their image."""
    inside = (root, root / "dataset", root / "benchmark_RELEASE" / "dataset")
    base = next((folder for folder in inside if (folder / "cls").is_dir()), None)
    if base is None:
        raise UsageError(f"{root}: not SBD, which has dataset/cls/; name the folder that does")
    ids: list[str] = []
    for split in ("train", "val"):
        path = base / f"{split}.txt"
        if not path.is_file():
            raise BadDataError(f"{path}: missing; extract all of SBD")
        found = read_lines(path)
        check_count("SBD", split, len(found), path, partial=partial)
        ids += found
    return {name: base / "cls" / f"{name}.mat" for name in ids}
