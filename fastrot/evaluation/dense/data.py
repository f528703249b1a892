"""The datasets of dense protocols, opened by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastrot.data.annotations.cityscapes import open_cityscapes
from fastrot.data.annotations.coco_instances import open_coco
from fastrot.data.annotations.detection import DetectionDataset
from fastrot.data.annotations.segmentation import SegmentationDataset
from fastrot.data.annotations.voc_detection import open_voc_detection
from fastrot.data.annotations.voc_segmentation import open_voc_segmentation
from fastrot.data.open import divide_split
from fastrot.data.splits import SplitError
from fastrot.errors import UsageError
from fastrot.evaluation.protocol import EvalConfig

_SETTINGS = (
    "dense.train_splits names those of the training data, dense.test_split that of the test data"
)


def open_detection(
    config: EvalConfig, path: Path, splits: Sequence[str], *, follow_symlinks: bool
) -> DetectionDataset:
    """Open the images and objects of a protocol.

    Raises:
        UsageError: the layout is a different one, or a split does not exist.
        BadDataError: something is missing or contradicts itself.
    """
    how = {"partial": config.dense.partial, "follow_symlinks": follow_symlinks}
    with _named_by_settings(path):
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
    with _named_by_settings(path):
        if config.data == "cityscapes":
            return open_cityscapes(path, _only(splits), **how)
        return open_voc_segmentation(path, _only(splits), sbd=config.dense.sbd, **how)


@contextmanager
def _named_by_settings(path: Path) -> Iterator[None]:
    """Raise errors about splits with the settings that name them: ``fastrot eval`` has no --split.

    Raises:
        UsageError: the path names a split, or there is no such split.
    """
    folder, split = divide_split(path, None)
    if split is not None:
        raise UsageError(
            f"{path}: name {folder} alone, without a split: {_SETTINGS}, as in "
            f"--set dense.test_split={split}"
        )
    try:
        yield
    except SplitError as error:
        raise UsageError(f"{error.what}, but {error.choices}: {_SETTINGS}") from None


def _only(splits: Sequence[str]) -> str:
    if len(splits) != 1:
        raise UsageError(f"dense.train_splits={list(splits)}: this dataset takes one split")
    return splits[0]


def _with_year(split: str) -> tuple[int, str]:
    year, _, name = split.partition("-")
    if not (year.isdecimal() and name):
        raise UsageError(f"split {split!r} of VOC needs its year, as 2007-trainval: {_SETTINGS}")
    return int(year), name
