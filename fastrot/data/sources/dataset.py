"""A folder of images as a dataset: files are read and decoded on demand.

It may have any layout that ``list_source`` supports, so no conversion is needed. Importing this
module does not import torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrot.data.image_files import ImageFiles
from fastrot.data.images.decode import measure
from fastrot.data.sources.cifar import SIDE as CIFAR_SIDE
from fastrot.data.sources.find import SourceKind, list_source


class FolderDataset(ImageFiles):
    """The images of a folder; see the ``Dataset`` contract. EXIF orientation is applied.

    The digest covers names, sizes in bytes, labels and class names, so opening a million files
    reads none of them. If an image is replaced by another of exactly the same size, a resumed run
    does not notice; modification times would show it, but they also change when a dataset is
    copied to another machine. A ``.beton`` file has checksums and therefore no such gap.

    Args:
        path: the folder of the dataset.
        kind: its layout, as in ``list_source``; ``folder``: class folders or unlabelled images.
        split: which part to read, if the dataset has parts.
        follow_symlinks: also follow links that lead out of the folder.

    Raises:
        UsageError: the folder or split does not exist, the layout differs, or a split is needed.
        BadDataError: the folder has no images, or its lists are damaged.
        StorageError: the folder cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        kind: SourceKind = "folder",
        split: str | None = None,
        follow_symlinks: bool = False,
    ) -> None:
        source = list_source(path, kind=kind, split=split, follow_symlinks=follow_symlinks)
        self.path = Path(path if split is None else f"{path}:{split}")
        self.labels = source.labels
        self.class_names = source.class_names
        self.unlabelled = self.fields = ""
        self.left_out = str(source.left_out)
        self.digest = self.origin = source.digest
        self.byte_sizes, self.stored_bytes = source.sizes, int(source.sizes.sum())
        self._source = source
        # CIFAR's binary version has no headers.
        known = CIFAR_SIDE if source.kind == "cifar" else 0
        super().__init__(np.full((len(source), 2), known, np.int32))

    def name(self, sample: int) -> str:
        """Return the path of the file, escaped if it would not print on one line."""
        path = self._source.file(sample)
        return path if path.isprintable() else repr(path)

    def check_unchanged(self) -> None:
        """Do nothing: every read opens its file again."""

    def _load(self, sample: int) -> bytes | NDArray[np.uint8]:
        return self._source.load(sample)

    def _measure(self, sample: int) -> tuple[int, int]:
        with open(self._source.file(sample), "rb") as file:
            return measure(file)[:2]
