"""How many images the splits of the datasets have, so that a part is not taken for the whole."""

from __future__ import annotations

from pathlib import Path

from fastrot.errors import BadDataError

COUNTS = {
    ("VOC2007", "trainval"): 5011,
    ("VOC2007", "train"): 2501,
    ("VOC2007", "val"): 2510,
    ("VOC2007", "test"): 4952,
    ("VOC2012", "trainval"): 11540,
    ("VOC2012", "train"): 5717,
    ("VOC2012", "val"): 5823,
    ("COCO", "train2017"): 118287,
    ("COCO", "val2017"): 5000,
    ("VOC2012 segmentation", "train"): 1464,
    ("VOC2012 segmentation", "val"): 1449,
    ("VOC2012 segmentation", "trainval"): 2913,
    ("SBD", "train"): 8498,
    ("SBD", "val"): 2857,
    ("VOC2012 segmentation", "trainaug"): 10582,
    ("Cityscapes", "train"): 2975,
    ("Cityscapes", "val"): 500,
}
"""Images by dataset and split, as the datasets' web pages state it."""


def check_count(name: str, split: str, found: int, listed_in: Path, *, partial: bool) -> str:
    """Check that a split is whole, unless a part of it may be read.

    Args:
        name: of the dataset, as in ``COUNTS``.
        split: of the dataset; any number is right if it is not in ``COUNTS``.
        found: number of images in it.
        listed_in: the list or folder that was read, for the message.
        partial: whether a part may be read.

    Returns:
        A note for the results on a part; empty if the split is whole or its size is unknown.

    Raises:
        BadDataError: it is not whole, and a part may not be read.
    """
    published = COUNTS.get((name, split), found)
    if found == published:
        return ""
    if partial:
        return (
            f"{found:,} images, but {name} {split} has {published:,}: scores are not comparable "
            "with published ones"
        )
    raise BadDataError(
        f"{listed_in}: {found:,} images, but {name} {split} has {published:,}; unpack all of the "
        "dataset, or read it as a part of one, with --set dense.partial=true"
    )
