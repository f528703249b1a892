"""The datasets of dense protocols, opened by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastrot.data.annotations.cityscapes import open_cityscapes
from fastrot.data.annotations.coco_instances import open_coco
from fastrot.data.annotations.detection import DetectionDataset
from fastrot.data.annotations.segmentation import SegmentationDataset
from fastrot.data.annotations.voc_detection import open_voc_detection
from fastrot.data.annotations.voc_segmentation import open_voc_segmentation
from fastrot.errors import UsageError
from fastrot.evaluation.protocol import EvalConfig


def open_detection(
    config: EvalConfig, path: Path, splits: Sequence[str], *, follow_symlinks: bool
) -> DetectionDataset:
    """Open the images and objects of a protocol.

    Raises:
        UsageError: the layout is a different one, or a split does not exist.
        BadDataError: something is missing or contradicts itself.
    """
    how = {"partial": config.dense.partial, "follow_symlinks": follow_symlinks}
    if config.data == "coco":
        return open_coco(path, _only(splits), **how)
    return open_voc_detection(path, [_with_year(split) for split in splits], **how)


def open_segmentation(
    config: EvalConfig, path: Path, splits: Sequence[str], *, follow_symlinks: bool
) -> SegmentationDataset:
    """Open the images and label maps of a protocol.

    Raises:
        UsageError: the layout is a different one, or a split does not exist.
        BadDataError: something is missing or contradicts itself.
    """
    how = {"partial": config.dense.partial, "follow_symlinks": follow_symlinks}
    if config.data == "cityscapes":
        return open_cityscapes(path, _only(splits), **how)
    return open_voc_segmentation(path, _only(splits), sbd=config.dense.sbd, **how)


def _only(splits: Sequence[str]) -> str:
    if len(splits) != 1:
        raise UsageError(f"dense.train_splits={list(splits)}: this dataset takes one split")
    return splits[0]


def _with_year(split: str) -> tuple[int, str]:
    year, _, name = split.partition("-")
    if not (year.isdecimal() and name):
        raise UsageError(f"split {split!r} of VOC needs its year, as 2007-trainval")
    return int(year), name
