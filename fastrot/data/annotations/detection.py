"""A dataset for detection: images with boxes, in COCO also with masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrot.data.annotations.images import AnnotatedImages, ImageList
from fastrot.data.annotations.objects import DetectionTarget, ObjectTable
from fastrot.errors import BadDataError


class DetectionDataset(AnnotatedImages):
    """Images and their objects; see the ``Dataset`` contract for the images.

    Args:
        images: n images, in the order of their names.
        objects: their objects.
        category_ids: ids of the K classes in the annotation file; None: from 1 on.

    Raises:
        BadDataError: the list is empty, or names an image twice or one that is not there.
    """

    def __init__(
        self,
        images: ImageList,
        objects: ObjectTable,
        category_ids: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(images, _content(objects), objects.sizes)
        self.objects = objects
        known = np.arange(1, self.num_classes + 1)
        self.category_ids = known if category_ids is None else category_ids

    def target(self, sample: int) -> DetectionTarget:
        """Return all objects of an image; ``for_training()`` of it leaves out some."""
        return self.objects.target(sample)

    def has_masks(self) -> bool:
        """Return whether the objects have outlines."""
        return self.objects.outlines is not None

    def trainable_images(self) -> NDArray[np.int64]:
        """Return the images with a trainable object, in order; mmdetection skips others."""
        return self.objects.trainable_images()

    def has_objects_to_find(self) -> bool:
        """Return whether a score can be computed: not all objects are crowds or difficult."""
        objects = self.objects.objects
        return bool((~objects["iscrowd"] & ~objects["difficult"]).any())

    def with_classes_of(self, other: DetectionDataset) -> DetectionDataset:
        """Return the dataset with its classes numbered as in another one, matched by name.

        Raises:
            BadDataError: the other one lacks a class of this one.
        """
        names = list(other.images.class_names)
        own = list(self.images.class_names)
        if own == names:
            return self
        if unknown := [name for name in own if name not in names]:
            shown = ", ".join(map(repr, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
            raise BadDataError(
                f"{self.path}: {len(unknown):,} of its {len(own):,} classes are not among those of "
                f"{other.path}: {shown}; give both the same categories"
            )
        numbers = np.array([names.index(name) for name in own], np.int64)
        objects = self.objects.objects.copy()
        objects["label"] = numbers[objects["label"]]
        table = ObjectTable(
            self.objects.image_ids, self.objects.sizes, objects, self.objects.outlines
        )
        missing = len(names) - len(own)
        note = f"{self.path} lacks {missing:,} of the {len(names):,} classes: not measured"
        notes = [self.images.note, note if missing else ""]
        images = replace(self.images, class_names=names, note="; ".join(filter(None, notes)))
        return DetectionDataset(images, table, other.category_ids)

    def select(self, samples: Sequence[int] | NDArray[np.int64]) -> DetectionDataset:
        """Return a dataset of some images, numbered from 0 in the order of their names."""
        kept = np.unique(np.asarray(samples, np.int64))
        images = replace(self.images, names=[self.images.names[i] for i in kept.tolist()])
        return DetectionDataset(images, self.objects.select(kept), self.category_ids)


def _content(objects: ObjectTable) -> list[NDArray[Any]]:
    """Return the arrays in which two tables differ if any annotation does."""
    content: list[NDArray[Any]] = [objects.image_ids, objects.sizes, objects.objects]
    if (outlines := objects.outlines) is not None:
        rows = sorted(outlines.runs)
        content += [outlines.points, outlines.polygons, outlines.objects]
        content += [np.array(rows, np.int64), *(outlines.runs[row] for row in rows)]
    return content
