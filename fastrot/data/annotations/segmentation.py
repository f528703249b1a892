"""A data set for semantic segmentation: images, and the class of every pixel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrot.data.annotations.images import AnnotatedImages, ImageList
from fastrot.data.annotations.label_maps import IGNORE, read_label_map
from fastrot.data.sources.listing import check_link
from fastrot.errors import BadDataError


@dataclass(frozen=True)
class SegmentationTarget:
    """The classes of one image's pixels.

    Attributes:
        name: path of the image.
        labels: classes from 0 on, 255 where a pixel is not counted, shape (H, W), uint8. All of
            them may be 255.
    """

    name: str
    labels: NDArray[np.uint8]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Where pixels are counted, of shape (H, W)."""
        return np.asarray(self.labels != IGNORE)


class SegmentationDataset(AnnotatedImages):
    """Images and their label maps; see the ``Dataset`` contract for the images.

    Args:
        images: n images, in the order of their names.
        label_files: their label maps.
        values: the class of each stored value, see ``value_map``.
        boundaries: folders that no link of a label map may lead out of; None: links may lead
            anywhere.

    Raises:
        BadDataError: the list is empty, names an image twice or one that is not there, or a label
            map is not there.
    """

    def __init__(
        self,
        images: ImageList,
        label_files: Sequence[Path],
        values: NDArray[np.int16],
        boundaries: Sequence[Path] | None = None,
    ) -> None:
        sizes = _file_sizes(label_files, images.listed_in, boundaries)
        super().__init__(images, [sizes, values])
        self.label_files, self.values, self._boundaries = list(label_files), values, boundaries

    def target(self, sample: int) -> SegmentationTarget:
        """Read the label map of an image.

        Raises:
            BadDataError: it is missing or damaged, has another size than the image, or a value
                that stands for no class.
            BadSampleError: the header of the image cannot be read.
            StorageError: the system cannot read it, or permission to read it is denied.
        """
        path = self.label_files[sample]
        labels = read_label_map(path, self.values)
        width, height = self.sizes(np.array([sample]))[0].tolist()
        if labels.shape != (height, width):
            raise BadDataError(
                f"{path}: {labels.shape[1]} x {labels.shape[0]} pixels, but its image "
                f"{self.name(sample)} has {width} x {height}; unpack the data set again"
            )
        return SegmentationTarget(self.name(sample), labels)

    def select(self, samples: Sequence[int] | NDArray[np.int64]) -> SegmentationDataset:
        """Return a data set of some images, numbered from 0 in the order of their names."""
        kept = sorted(set(np.asarray(samples, np.int64).tolist()))
        images = replace(self.images, names=[self.images.names[i] for i in kept])
        files = [self.label_files[i] for i in kept]
        return SegmentationDataset(images, files, self.values, self._boundaries)


def _file_sizes(
    paths: Sequence[Path], listed_in: Path, boundaries: Sequence[Path] | None
) -> NDArray[np.int64]:
    """Return the sizes of files in bytes, of shape (n,)."""
    sizes = np.zeros(len(paths), np.int64)
    missing: list[Path] = []
    for row, path in enumerate(paths):
        try:
            sizes[row] = os.stat(path).st_size
        except (FileNotFoundError, NotADirectoryError):
            missing.append(path)
            continue
        if boundaries is not None and os.path.islink(path):
            inside = [b for b in boundaries if Path(os.path.realpath(path)).is_relative_to(b)]
            check_link(str(path), inside[0] if inside else boundaries[0])
    if missing:
        raise BadDataError(
            f"{listed_in}: {len(missing):,} of {len(paths):,} images have no label map, the first "
            f"is {missing[0]}; unpack all of the data set"
        )
    return sizes
