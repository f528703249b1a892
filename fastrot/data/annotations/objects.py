"""The objects of a dataset in one array, and those of one image as a target for a detector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrot.data.annotations.outlines import Outlines, Rle, mask_library, offsets
from fastrot.data.images.decode import MAX_PIXELS
from fastrot.errors import BadDataError

OBJECT = np.dtype(
    [
        ("image", np.int64),
        ("box", np.float64, 4),
        ("label", np.int64),
        ("area", np.float64),
        ("iscrowd", np.bool_),
        ("difficult", np.bool_),
        ("outline", np.int64),
    ]
)
"""One object, 66 bytes: the index of its image; left, top, width and height in pixels, as
annotated; its class, from 0; its area in square pixels; two flags; the index of its outline."""

_MARGIN = 1.0
"""Pixels by which a box may leave its image: coordinates are rounded, and VOC counts from 1."""


@dataclass(frozen=True)
class DetectionTarget:
    """The n objects of one image.

    Attributes:
        image_id: COCO's id; in VOC, the position in the dataset, from 1.
        width: of the image, in pixels.
        height: of the image, in pixels.
        boxes: x1, y1, x2, y2 in pixels, shape (n, 4), float32. A box that covers the first pixel
            alone is 0, 0, 1, 1. Boxes do not leave the image.
        labels: classes, counted from 0, shape (n,), int64.
        area: in square pixels, as annotated (COCO: of the mask), shape (n,), float64.
        iscrowd: whether the object is a group that is not told apart, shape (n,), bool.
        difficult: whether VOC leaves the object out of its scores, shape (n,), bool.
        trainable: whether mmdetection trains on the object, shape (n,), bool: not on crowds, not on
            difficult ones, and not on the few that are narrower than a pixel or without area.
        rows: positions in ``outlines``, shape (n,), int64.
        outlines: of all objects of the dataset; None where there are only boxes.
    """

    image_id: int
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    area: NDArray[np.float64]
    iscrowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    trainable: NDArray[np.bool_]
    rows: NDArray[np.int64]
    outlines: Outlines | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def for_training(self) -> DetectionTarget:
        """Return the target with its trainable objects alone."""
        parts = ("boxes", "labels", "area", "iscrowd", "difficult", "trainable", "rows")
        kept: dict[str, Any] = {name: getattr(self, name)[self.trainable] for name in parts}
        return replace(self, **kept)

    def rles(self) -> list[Rle]:
        """Return the masks in pycocotools' form.

        Raises:
            BadDataError: the dataset has only boxes.
            UsageError: pycocotools is not installed.
        """
        if self.outlines is None:
            raise BadDataError("the dataset has boxes, but no outlines; masks need COCO's layout")
        return [self.outlines.rle(row, self.height, self.width) for row in self.rows.tolist()]

    def masks(self) -> NDArray[np.uint8]:
        """Return the masks as pixels, 0 or 1, of shape (n, height, width).

        Raises:
            BadDataError: the dataset has only boxes.
            UsageError: pycocotools is not installed.
        """
        masks = np.zeros((len(self), self.height, self.width), np.uint8)
        for mask, rle in zip(masks, self.rles(), strict=True):
            mask[:] = mask_library().decode(rle)
        return masks


class ObjectTable:
    """The m objects of n images, by image and in the order of the file within each.

    Args:
        image_ids: see ``DetectionTarget``, shape (n,), int64.
        sizes: widths and heights of the images, shape (n, 2), int32.
        objects: of shape (m,), dtype ``OBJECT``, in any order.
        outlines: of the objects, by their ``outline``; None where there are only boxes.
    """

    def __init__(
        self,
        image_ids: NDArray[np.int64],
        sizes: NDArray[np.int32],
        objects: NDArray[np.void],
        outlines: Outlines | None = None,
    ) -> None:
        self.image_ids, self.sizes, self.outlines = image_ids, sizes, outlines
        self.objects = objects[np.argsort(objects["image"], kind="stable")]
        self._starts = offsets(np.bincount(objects["image"], minlength=len(image_ids)))

    def of_image(self, sample: int) -> NDArray[np.void]:
        """Return the objects of an image, dtype ``OBJECT``."""
        return self.objects[self._starts[sample] : self._starts[sample + 1]]

    def target(self, sample: int) -> DetectionTarget:
        """Return the objects of an image."""
        objects = self.of_image(sample)
        corners = self._corners(objects)
        width, height = self.sizes[sample].tolist()
        return DetectionTarget(
            image_id=int(self.image_ids[sample]),
            width=width,
            height=height,
            boxes=corners.astype(np.float32),
            labels=objects["label"].copy(),
            area=objects["area"].copy(),
            iscrowd=objects["iscrowd"].copy(),
            difficult=objects["difficult"].copy(),
            trainable=_trainable(objects, corners),
            rows=objects["outline"].copy(),
            outlines=self.outlines,
        )

    def trainable_images(self) -> NDArray[np.int64]:
        """Return the images with a trainable object, in order."""
        chosen = _trainable(self.objects, self._corners(self.objects))
        return np.unique(self.objects["image"][chosen])

    def select(self, images: NDArray[np.int64]) -> ObjectTable:
        """Return the table of some images, given in ascending order."""
        objects = self.objects[np.isin(self.objects["image"], images)]
        objects["image"] = np.searchsorted(images, objects["image"])
        return ObjectTable(self.image_ids[images], self.sizes[images], objects, self.outlines)

    def _corners(self, objects: NDArray[np.void]) -> NDArray[np.float64]:
        """Return x1, y1, x2, y2 within the image, of shape (k, 4)."""
        box, sizes = objects["box"], self.sizes[objects["image"]]
        corners = np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1)
        return np.asarray(np.clip(corners, 0, np.tile(sizes, 2)), np.float64)


def _trainable(objects: NDArray[np.void], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    wide = (corners[:, 2:] - corners[:, :2] >= 1).all(axis=1)
    usable = wide & ~objects["iscrowd"] & ~objects["difficult"] & (objects["area"] > 0)
    return np.asarray(usable, np.bool_)


def check_sizes(sizes: NDArray[np.int32], where: Callable[[int], str]) -> None:
    """Check that images of these sizes could be decoded.

    Args:
        sizes: widths and heights, of shape (n, 2).
        where: returns what to name the image at an index, for the message.

    Raises:
        BadDataError: one has no pixels, or too many.
    """
    wrong = (sizes < 1).any(axis=1) | (sizes.prod(axis=1, dtype=np.int64) > MAX_PIXELS)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        width, height = sizes[first].tolist()
        raise BadDataError(
            f"{where(first)}: the image is {width} x {height} pixels, but there must be 1 to "
            f"{MAX_PIXELS:,} pixels; correct it, or extract the dataset again"
        )


def check_boxes(
    boxes: NDArray[np.float64], sizes: NDArray[np.int32], where: Callable[[int], str]
) -> None:
    """Check that boxes lie in their images, but for a pixel.

    Args:
        boxes: left, top, width, height, of shape (m, 4).
        sizes: widths and heights of their images, of shape (m, 2).
        where: returns what to name the box at an index, for the message.

    Raises:
        BadDataError: one does not, or is not a box.
    """
    right = boxes[:, :2] + boxes[:, 2:]
    finite = np.isfinite(boxes).all(axis=1)
    sound = np.asarray(finite & (boxes[:, 2:] >= 0).all(axis=1))
    inside = (boxes[:, :2] >= -_MARGIN).all(axis=1) & (right <= sizes + _MARGIN).all(axis=1)
    if (wrong := np.flatnonzero(~(sound & inside))).size:
        first = int(wrong[0])
        left, top, width, height = boxes[first].tolist()
        across, down = sizes[first].tolist()
        rule = "leaves its" if sound[first] else "is not a box in its"
        raise BadDataError(
            f"{where(first)}: the box from {left:g}, {top:g} of {width:g} x {height:g} pixels "
            f"{rule} image of {across} x {down}; correct it, or extract the dataset again"
        )
