"""The images of an annotated dataset, in the order of their names: the ``Dataset`` contract."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fastrot.data.dataset import BadSampleError, Encoded
from fastrot.data.image_files import ImageFiles
from fastrot.data.images.decode import DecodeError, decode_image, measure
from fastrot.data.sources.listing import listed_source
from fastrot.errors import StorageError, UsageError


@dataclass(frozen=True)
class ImageList:
    """The images that a dataset's lists name.

    Attributes:
        path: what the user gave, with the split.
        root: folder that the names are relative to.
        names: n names, in order.
        listed_in: the list, for messages.
        class_names: K names.
        boundary: folder that no link may lead out of; None: links may lead anywhere.
        note: what to print with scores, such as that this is a part; else empty.
    """

    path: Path
    root: Path
    names: Sequence[str]
    listed_in: Path
    class_names: Sequence[str]
    boundary: Path | None
    note: str = ""


class AnnotatedImages(ImageFiles):
    """Images on disk with annotations; images have no label of their own.

    Args:
        images: the images.
        annotations: arrays that the digest covers besides the names and sizes of the images.
        sizes: annotated widths and heights, of shape (n, 2); None: headers are read on demand.

    Raises:
        BadDataError: the list is empty, or names an image twice or one that is not there.
    """

    def __init__(
        self,
        images: ImageList,
        annotations: Sequence[NDArray[Any]],
        sizes: NDArray[np.int32] | None = None,
    ) -> None:
        count = len(images.names)
        source = listed_source(
            images.root,
            "folder",
            names=images.names,
            labels=np.full(count, -1, np.int64),
            class_names=images.class_names,
            listed_in=images.listed_in,
            boundary=images.boundary,
        )
        assert list(source.paths) == list(images.names), "annotations are in this order"
        super().__init__(np.zeros((count, 2), np.int32) if sizes is None else sizes)
        self.images, self.path = images, images.path
        self.labels = source.labels
        self.class_names: tuple[str, ...] | None = tuple(images.class_names)
        self.num_classes = len(images.class_names)
        self.note = images.note
        self.unlabelled = self.fields = self.left_out = ""
        content = xxhash.xxh3_128(source.digest.encode())
        content.update(repr(self.class_names).encode())
        for part in annotations:
            content.update(f"{len(part)} ".encode() + part.tobytes())
        self.digest = self.origin = content.hexdigest()
        self.byte_sizes, self.stored_bytes = source.sizes, int(source.sizes.sum())
        self._annotated_sizes = sizes is not None
        self._source = source

    def name(self, sample: int) -> str:
        """Return the path of the image, escaped if it would not print on one line."""
        path = self._source.file(sample)
        return path if path.isprintable() else repr(path)

    def read(self, sample: int) -> Encoded:
        """Return the bytes of the file.

        If only the pixels as stored have the annotated size, those were annotated, and the EXIF
        orientation is not applied.

        Raises:
            BadSampleError: the file or its header cannot be read, or the image has another size
                than the annotations say.
            StorageError: the system cannot read it, or permission to read it is denied.
        """
        found = super().read(sample)
        width, height = self._sizes[sample].tolist()
        if not self._annotated_sizes or (found.width, found.height) == (width, height):
            return found
        if found.orientation >= 5 and (found.height, found.width) == (width, height):
            return Encoded(found.data, "file", width, height)
        raise BadSampleError(
            sample,
            self.name(sample),
            f"{found.width} x {found.height} pixels, but its annotation says {width} x {height}",
        )

    def decode(self, sample: int) -> NDArray[np.uint8]:
        """Decode to RGB pixels of shape (H, W, 3), uint8, as annotated.

        Raises:
            BadSampleError: as for ``read``, or the decoder refuses the bytes or warns about them.
            StorageError: the system cannot read it, or permission to read it is denied.
        """
        found = self.read(sample)
        try:
            return decode_image(found.data, apply_exif=found.orientation != 1)
        except DecodeError as error:
            raise self._bad(sample, error) from None

    def check_unchanged(self) -> None:
        """Do nothing: every read opens its file again."""

    def _load(self, sample: int) -> bytes:
        with open(self._source.file(sample), "rb") as file:
            return file.read()

    def _measure(self, sample: int) -> tuple[int, int]:
        with open(self._source.file(sample), "rb") as file:
            return measure(file)[:2]


@contextmanager
def listing(root: Path) -> Iterator[None]:
    """Turn errors raised while a dataset is listed into errors that name its folder.

    Raises:
        UsageError: there is no such folder.
        StorageError: it cannot be read.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; check the path")
    try:
        yield
    except OSError as error:
        raise StorageError(f"{root}: cannot be listed: {error}") from None


def link_boundary(root: Path, *, follow_symlinks: bool) -> Path | None:
    """Return the folder that no link may lead out of; None if links may lead anywhere."""
    return None if follow_symlinks else Path(os.path.realpath(root))
