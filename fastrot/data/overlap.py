"""Detection of test images that are also training images, whatever their names and files.

A file may be a copy, a shard one of several, a folder a part of another. Scores on training images
say nothing about generalisation, so an overlap is reported as a warning. Importing this module
imports no torch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastrot.data.dataset import BadSampleError, Dataset

_LOOKED_AT = 256
_CANDIDATES = 64
_READS = 4000
_GOLDEN = 0.6180339887


class Overlap(NamedTuple):
    """The number of test images found among the training images, of those checked."""

    found: int
    looked_at: int
    all_of_them: bool

    def warning(self, test: Dataset) -> str:
        """Return a warning for the user; empty if no overlap was found."""
        if self.all_of_them:
            return (
                f"warning: {test.path} is the training data: every test image that was checked is "
                "also a training image, so these numbers say nothing about other images"
            )
        if not self.found:
            return ""
        return (
            f"warning: {self.found:,} of {self.looked_at:,} images of {test.path} that were "
            "checked are training images: these numbers say little about other images"
        )


def find_overlap(train: Dataset, test: Dataset) -> Overlap:
    """Compare test images with the training images of the same number of bytes.

    At most 256 test images are checked, evenly spaced; each is compared with up to 64 training
    images of its size, those nearest to its relative position first. Re-encoded images are not
    found, except those that ``fastrot prepare`` made from the same folder.
    """
    if train.origin == test.origin and train.digest != test.digest:
        return Overlap(len(test), len(test), True)
    order = np.argsort(train.byte_sizes, kind="stable")
    sizes, sizes_of_test = train.byte_sizes[order], test.byte_sizes
    found = looked_at = reads = 0
    spaced = np.unique(np.linspace(0, len(test) - 1, _LOOKED_AT).astype(np.int64))
    # In golden-ratio order, so that those checked before the limit are spread over all.
    for sample in spaced[np.argsort(np.arange(len(spaced)) * _GOLDEN % 1)].tolist():
        size = sizes_of_test[sample]
        same_size = order[np.searchsorted(sizes, size) : np.searchsorted(sizes, size, "right")]
        place = sample / max(len(test) - 1, 1) * (len(train) - 1)
        nearest = same_size[np.argsort(np.abs(same_size - place), kind="stable")][:_CANDIDATES]
        looked_at += 1
        if len(nearest):
            found += _is_among(test, sample, train, nearest.tolist())
            reads += 1 + len(nearest)
        if reads > _READS:
            break
    return Overlap(found, looked_at, 0 < found == looked_at)


def _is_among(test: Dataset, sample: int, train: Dataset, candidates: list[int]) -> bool:
    """Return whether the bytes of an image equal those of a candidate."""
    try:
        data = bytes(test.read(sample).data)
    except BadSampleError:  # reported where the sample is used
        return False
    for candidate in candidates:
        try:
            if bytes(train.read(candidate).data) == data:
                return True
        except BadSampleError:
            continue
    return False
