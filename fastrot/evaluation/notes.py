"""Notes on a protocol's data that matter before its numbers are compared with others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrot.data.classes import ClassMatch
from fastrot.data.dataset import Dataset, count_line
from fastrot.data.labels import PRESENT, Labels
from fastrot.data.overlap import find_overlap
from fastrot.data.sources.find import size_note
from fastrot.evaluation.protocol import DataKind

Named = tuple[Path, Dataset]
"""The path that the user gave, and the open dataset."""

_SPLITS = {
    "voc07": ("trainval", "test"),
    "imagenet": ("train", "val"),
    "places205": ("train", "val"),
    "inat18": ("train", "val"),
}
_SHOWN = 3


def data_notes(train: Named, test: Named, match: ClassMatch) -> list[str]:
    """Return what is unusual about two datasets, one line each, as warnings at the start."""
    parts = dict.fromkeys((train[1], test[1]))
    notes = [count_line(each) for each in parts if each.left_out or each.fields]
    notes += [*match.notes, *_empty_classes(train, test, match)]
    warning = find_overlap(train[1], test[1]).warning(test[1])
    return [*notes, warning] if warning else notes


def size_notes(kind: DataKind, train: Named, test: Named) -> list[str]:
    """Return a line for each dataset whose size differs from that of the published numbers."""
    notes = []
    for (path, samples), split in zip((train, test), _SPLITS.get(kind, ()), strict=False):
        note = size_note(kind, split, len(samples))
        notes += [] if note is None else [f"{path}: {note}"]
    return notes


def _empty_classes(train: Named, test: Named, match: ClassMatch) -> list[str]:
    """Describe classes without images, for example because all were bad and left out."""
    learnt = _images_a_class(train[1].labels, match.count)
    asked = _images_a_class(match.translate(test[1].labels), match.count)
    # The match reports classes that a test set does not even list.
    listed = np.ones(match.count, bool)
    if match.numbers is not None:
        listed = np.isin(np.arange(match.count), match.numbers)
    named = test[1].class_names is not None
    notes = []
    if len(lost := np.flatnonzero((learnt == 0) & ((asked > 0) | (match.names is not None)))):
        images = int(asked[lost].sum())
        wrong = f"; test images of such classes can only be wrong: {images:,}" if images else ""
        notes.append(f"{train[0]} has no image of {_classes(lost, match)}{wrong}")
    if len(lost := np.flatnonzero((asked == 0) & listed)) and named:
        notes.append(f"{test[0]} has no image of {_classes(lost, match)}: not measured")
    return notes


def _images_a_class(labels: Labels, count: int) -> NDArray[np.int64]:
    """Return the number of images per class, of shape (count,)."""
    if labels.ndim == 2:
        return np.asarray(np.count_nonzero(labels == PRESENT, axis=0), np.int64)
    return np.bincount(labels, minlength=count)[:count].astype(np.int64)


def _classes(numbers: NDArray[np.int64], match: ClassMatch) -> str:
    names = [repr(match.names[i]) if match.names else str(i) for i in numbers[:_SHOWN].tolist()]
    more = ", ..." if len(numbers) > _SHOWN else ""
    if len(numbers) == 1:
        return f"class {names[0]}"
    return f"{len(numbers):,} of its {match.count:,} classes: {', '.join(names)}{more}"
