"""A dataset for semantic segmentation: images, and the class of every pixel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from fastrot.data.annotations.images import AnnotatedImages, ImageList
from fastrot.data.annotations.label_maps import IGNORE, read_label_map
from fastrot.data.sources.listing import check_link
from fastrot.errors import BadDataError, StorageError

_READERS = 16  # threads that wait for a disk or a network


@dataclass(frozen=True)
class SegmentationTarget:
    """The classes of one image's pixels.

    Attributes:
        name: path of the image.
        labels: classes, counted from 0, and 255 where a pixel is ignored, shape (H, W), uint8. All
            of them may be 255.
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
        StorageError: a label map cannot be read.
    """

    def __init__(
        self,
        images: ImageList,
        label_files: Sequence[Path],
        values: NDArray[np.int16],
        boundaries: Sequence[Path] | None = None,
    ) -> None:
        _check_files(label_files, images.listed_in, boundaries)
        super().__init__(images, [_hashes(label_files), values])
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
                f"{self.name(sample)} has {width} x {height}; extract the dataset again"
            )
        return SegmentationTarget(self.name(sample), labels)

    def select(self, samples: Sequence[int] | NDArray[np.int64]) -> SegmentationDataset:
        """Return a dataset of some images, numbered from 0 in the order of their names."""
        kept = sorted(set(np.asarray(samples, np.int64).tolist()))
        images = replace(self.images, names=[self.images.names[i] for i in kept])
        files = [self.label_files[i] for i in kept]
        return SegmentationDataset(images, files, self.values, self._boundaries)


def _check_files(paths: Sequence[Path], listed_in: Path, boundaries: Sequence[Path] | None) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise BadDataError(
            f"{listed_in}: {len(missing):,} of {len(paths):,} images have no label map, the first "
            f"is {missing[0]}; extract the whole dataset"
        )
    for path in paths if boundaries is not None else ():
        if os.path.islink(path):
            inside = [b for b in boundaries or () if Path(os.path.realpath(path)).is_relative_to(b)]
            check_link(str(path), inside[0] if inside else (boundaries or ())[0])


def _hashes(paths: Sequence[Path]) -> NDArray[np.uint64]:
    """Return a hash of the bytes of each file, of shape (n,).

    Label maps are edited in place, which sizes and names do not show.
    """

    def hashed(path: Path) -> int:
        try:
            return xxhash.xxh3_64_intdigest(path.read_bytes())
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None

    with ThreadPoolExecutor(_READERS) as readers:
        return np.fromiter(readers.map(hashed, paths), np.uint64, len(paths))
