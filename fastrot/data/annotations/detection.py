"""A data set for detection: images with boxes, in COCO also with masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrot.data.annotations.images import AnnotatedImages, ImageList
from fastrot.data.annotations.objects import DetectionTarget, ObjectTable


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
        content: list[NDArray[Any]] = [objects.sizes, objects.objects]
        if objects.outlines is not None:
            content.append(objects.outlines.points)
        super().__init__(images, content, objects.sizes)
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

    def select(self, samples: Sequence[int] | NDArray[np.int64]) -> DetectionDataset:
        """Return a data set of some images, numbered from 0 in the order of their names."""
        kept = np.unique(np.asarray(samples, np.int64))
        images = replace(self.images, names=[self.images.names[i] for i in kept.tolist()])
        return DetectionDataset(images, self.objects.select(kept), self.category_ids)
