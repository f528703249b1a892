"""Checks of the data of a dense protocol before its training, which can take days."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from fastrot.data.annotations.detection import DetectionDataset
from fastrot.data.annotations.label_maps import IGNORE
from fastrot.data.annotations.segmentation import SegmentationDataset
from fastrot.data.overlap import find_overlap
from fastrot.distributed.world import World
from fastrot.errors import BadDataError
from fastrot.system.console import Say
from fastrot.system.machine import usable_cores

_SAY_SECONDS = 10.0
_AT_ONCE = 64


def check_objects(train: DetectionDataset, test: DetectionDataset) -> None:
    """Check that there is something to learn and something to find.

    Raises:
        BadDataError: all objects of one of them are crowds or difficult, or it has none.
    """
    if not len(train.trainable_images()):
        raise BadDataError(
            f"{train.path}: no image has an object to learn, only crowds, difficult "
            "objects and objects without extent, or none; name other training data"
        )
    if not test.has_objects_to_find():
        raise BadDataError(
            f"{test.path}: has no object to find that counts in a score; test on data with some"
        )


def check_label_maps(dataset: SegmentationDataset, world: World, say: Say) -> None:
    """Read every label map; each rank reads its share.

    Raises:
        BadDataError: one is damaged, has another size than its image or a value that stands for no
            class, or all pixels of all of them are ignored.
        BadSampleError: the header of an image cannot be read.
        StorageError: one cannot be read.
    """
    mine = range(world.rank, len(dataset), world.size)
    began = said = time.monotonic()
    labelled = False
    for done, found in enumerate(_labelled(dataset, mine), 1):
        labelled |= found
        if (now := time.monotonic()) - said > _SAY_SECONDS:
            said, left = now, (now - began) / done * (len(mine) - done)
            say(f"{dataset.path}: {done:,} of {len(mine):,} label maps read, {left:,.0f} s left")
    if not world.any(labelled):
        raise BadDataError(
            f"{dataset.path}: every pixel is ignored: all labels are {IGNORE}; name other data"
        )


def overlap_notes(
    train: DetectionDataset | SegmentationDataset, test: DetectionDataset | SegmentationDataset
) -> list[str]:
    """Return a warning if test images are among the training images, else nothing."""
    warning = find_overlap(train, test).warning(test)
    return [warning] if warning else []


def precision_notes(precision: str) -> list[str]:
    """Return what to know about a training in reduced precision, else nothing."""
    if precision != "bf16":
        return []
    return ["trained in bf16, published numbers in fp32; to compare, --set dense.precision=fp32"]


def _labelled(dataset: SegmentationDataset, samples: range) -> Iterator[bool]:
    """Yield whether the label map of each sample has a pixel that counts, a few ahead."""

    def read(sample: int) -> bool:
        return bool(dataset.target(sample).counted.any())

    with ThreadPoolExecutor(usable_cores()) as threads:
        for first in range(0, len(samples), _AT_ONCE):
            yield from threads.map(read, samples[first : first + _AT_ONCE])
