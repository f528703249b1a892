"""Random access to the encoded images of a dataset, the source of every loader.

A dataset is a ``.beton`` file, a folder of images or tar shards. ``open_dataset`` chooses by the
path, and the loaders need not know which it is. Datasets are picklable, since worker processes
receive them, and a copy opens its files on the first read.

Importing this module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fastrot.data.labels import Labels
from fastrot.errors import BadDataError


class BadSampleError(BadDataError):
    """A sample that cannot be read.

    Args:
        sample: position in the dataset.
        name: where the bytes are: the path of a file, or "FILE.beton sample 17".
        reason: what is wrong with them.
    """

    def __init__(self, sample: int, name: str, reason: str) -> None:
        super().__init__(sample, name, reason)
        self.sample = sample
        self.name = name
        self.reason = reason
        self.replacements = 0
        """Number of replacements that were tried and turned out to be bad, too."""
        self.can_be_skipped = False
        """Whether a loader met it that would replace bad samples if it were told to."""

    def __str__(self) -> str:
        fix = "repair or remove it"
        if self.name.rsplit(" ", 1)[0].endswith(".beton sample"):
            fix = "make the file again from its source"
        what = f"bad sample {self.sample} ({self.name}): {self.reason}"
        if self.replacements:
            return (
                f"{what}; {self.replacements} samples drawn to replace it are bad, too: hardly any "
                "sample can be read; repair the data"
            )
        return f"{what}; {fix}{', or add --on-bad-sample skip' if self.can_be_skipped else ''}"


@dataclass(frozen=True)
class Encoded:
    """The stored bytes of one image.

    Attributes:
        data: an image file (in a ``.beton`` file a JPEG; elsewhere of any supported format), or raw
            RGB rows.
        kind: ``file``: encoded image file. ``raw``: height * width * 3 bytes, row-major RGB.
        width: pixels, after EXIF orientation where it applies.
        height: pixels, after EXIF orientation where it applies.
        orientation: EXIF orientation, 1 to 8, still to be applied to the stored pixels.
    """

    data: bytes | memoryview
    kind: Literal["file", "raw"]
    width: int
    height: int
    orientation: int = 1


class Dataset(Protocol):
    """The contract of a dataset.

    Attributes:
        path: the path that the user gave.
        labels: of shape (n,), int64, -1 for a missing label; or (n, K), int8: see ``Labels``.
        class_names: one per class, or None when unknown.
        unlabelled: why images have no labels, when that may be unexpected; else empty.
        fields: the fields that are read, if a .beton file has others as well; else empty.
        left_out: what else the source contains, in one line; else empty.
        digest: hash of the identity of the content; a resumed run must find the same one. It
            covers every byte of a .beton file with a manifest, all but the image data without
            one, and the names and sizes, but not the contents, of the files in a folder.
        origin: digest of the folder that a .beton file was made from; else the dataset's own.
        byte_sizes: stored size of each image in bytes, of shape (n,).
        stored_bytes: stored size of all images together.
        applies_exif: whether EXIF orientation is applied on reading (folders: yes; .beton: no,
            it was applied when the file was written, and FFCV ignores it).
    """

    path: Path
    labels: Labels
    class_names: tuple[str, ...] | None
    unlabelled: str
    fields: str
    left_out: str
    digest: str
    origin: str
    byte_sizes: NDArray[np.int64]
    stored_bytes: int
    applies_exif: bool

    def __len__(self) -> int: ...

    def name(self, sample: int) -> str:
        """Return the location of a sample's bytes, for messages."""
        ...

    def sizes(self, samples: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return widths and heights, of shape (N, 2), after EXIF orientation where it applies.

        Raises:
            BadSampleError: a header cannot be read.
        """
        ...

    def read(self, sample: int) -> Encoded:
        """Return the encoded bytes, checked against the manifest's checksum if there is one.

        Raises:
            BadSampleError: the bytes are missing, changed, or without a readable header.
        """
        ...

    def decode(self, sample: int) -> NDArray[np.uint8]:
        """Return pixels of shape (H, W, 3), RGB, after EXIF orientation where it applies.

        This is the reference that every loader is compared with.

        Raises:
            BadSampleError: as for ``read``, or the decoder refuses the bytes or warns about them.
        """
        ...

    def check_unchanged(self) -> None:
        """Check that the opened files are still the same; loaders do so once per epoch.

        Raises:
            BadDataError: a .beton file or tar shard was replaced, removed, truncated or modified.
        """
        ...


def count_line(dataset: Dataset) -> str:
    """Return a line with the numbers of images and classes, and what the source holds besides.

    Example:
        ``photos: 10 images in 2 classes; left out: 1 .heic ('cat/IMG_1.heic')``
    """
    classes = len(dataset.class_names or ())
    labels = ""
    if classes:
        labels = f" in {classes:,} class{'es' if classes > 1 else ''}"
    images = f"{len(dataset):,} image{'s' if len(dataset) > 1 else ''}"
    left_out = f"; left out: {dataset.left_out}" if dataset.left_out else ""
    fields = f"; fields: {dataset.fields}" if dataset.fields else ""
    return f"{dataset.path}: {images}{labels}{fields}{left_out}"


def decode_sample(dataset: Dataset, sample: int) -> NDArray[np.uint8]:
    """Decode a sample to pixels of shape (H, W, 3), RGB, of the size that its header announces.

    Boxes are drawn from the announced size; on an image of any other size they would cut out
    sheared or black pixels.

    Raises:
        BadSampleError: as for ``Dataset.decode``, or the size differs.
    """
    pixels = dataset.decode(sample)
    width, height = dataset.sizes(np.array([sample]))[0].tolist()
    if pixels.shape[:2] != (height, width):
        raise BadSampleError(
            sample,
            dataset.name(sample),
            f"decodes to {pixels.shape[1]} x {pixels.shape[0]} pixels, but its header says "
            f"{width} x {height}",
        )
    return pixels
