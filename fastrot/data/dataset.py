"""Random access to the encoded images of a data set: what every loader reads from.

A data set is a ``.beton`` file, a folder of images or tar shards. ``open_dataset`` looks at the
path and returns one; the loaders do not know which. Objects are picklable (worker processes receive
them) and open files only when first read.

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
    """One sample cannot be read: which, and why.

    Args:
        sample: position in the data set.
        name: where the bytes are: a file's path, or "FILE.beton sample 17".
        reason: what is wrong with them.
    """

    def __init__(self, sample: int, name: str, reason: str) -> None:
        super().__init__(sample, name, reason)
        self.sample = sample
        self.name = name
        self.reason = reason
        self.replacements = 0
        """How many others were tried in its place, and are bad, too."""

    def __str__(self) -> str:
        fix = "mend or remove it"
        if self.name.rsplit(" ", 1)[0].endswith(".beton sample"):
            fix = "make the file again from its source"
        what = f"bad sample {self.sample} ({self.name}): {self.reason}"
        if self.replacements:
            return (
                f"{what}; {self.replacements} samples drawn to replace it are bad, too: "
                "mend the data, hardly any of it can be read"
            )
        return f"{what}; {fix}, or train with --on-bad-sample skip"


@dataclass(frozen=True)
class Encoded:
    """The stored bytes of one image.

    Attributes:
        data: a JPEG (or PNG, in folders) file, or raw RGB rows.
        kind: ``file``: encoded image file. ``raw``: height * width * 3 bytes, row-major RGB.
        width: pixels, after EXIF orientation where it applies.
        height: pixels, after EXIF orientation where it applies.
        orientation: EXIF, 1 to 8, that the stored pixels are still to be turned by.
    """

    data: bytes | memoryview
    kind: Literal["file", "raw"]
    width: int
    height: int
    orientation: int = 1


class Dataset(Protocol):
    """The contract of a data set.

    Attributes:
        path: what the user named.
        labels: of shape (n,), int64, -1 where there is none; or (n, K), int8: see ``Labels``.
        class_names: one per class, or None when unknown.
        unlabelled: why images have no labels, where a reader might expect some; else empty.
        fields: which are read of a .beton file that has more; else empty.
        left_out: what the source holds besides these images, in one line; else empty.
        digest: hash of the content's identity; a resumed run must see the same one. It covers
            every byte of a .beton file with a manifest, all but the images' data without one,
            and of a folder the names and sizes of the files, not what is in them.
        origin: digest of the folder that a .beton file was made from; of others, their own.
        byte_sizes: of each image as it is stored, of shape (n,).
        stored_bytes: of all images together.
        applies_exif: whether pixels are turned as EXIF orientation says (folders: yes; .beton:
            no, it was applied when the file was written, and FFCV ignores it).
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
        """Where the bytes of a sample are, for messages."""
        ...

    def sizes(self, samples: NDArray[np.int64]) -> NDArray[np.int32]:
        """Widths and heights of shape (N, 2), after EXIF orientation where it applies.

        Raises:
            BadSampleError: a header cannot be read.
        """
        ...

    def read(self, sample: int) -> Encoded:
        """The encoded bytes, checked against the manifest's checksum if there is one.

        Raises:
            BadSampleError: bytes missing, changed, or without a readable header.
        """
        ...

    def decode(self, sample: int) -> NDArray[np.uint8]:
        """Pixels of shape (H, W, 3), RGB, after EXIF orientation where it applies.

        This is the definition that every loader is compared with.

        Raises:
            BadSampleError: as ``read``, or the decoder refuses the bytes or warns about them.
        """
        ...

    def check_unchanged(self) -> None:
        """Check that what was opened is still the same; loaders do once an epoch.

        Raises:
            BadDataError: a .beton file or a tar shard was replaced, removed, cut or written to.
        """
        ...


def count_line(dataset: Dataset) -> str:
    """Return how many images a data set has, in how many classes, and what is not read of it.

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
    """Decode a sample to the pixels that its header announced, of shape (H, W, 3), RGB.

    Boxes are drawn by the announced size: of an image that turns out to have another one they
    would cut sheared pixels, or black ones.

    Raises:
        BadSampleError: as ``Dataset.decode``, or the size is another.
    """
    pixels = dataset.decode(sample)
    width, height = dataset.sizes(np.array([sample]))[0].tolist()
    if pixels.shape[:2] != (height, width):
        raise BadSampleError(
            sample,
            dataset.name(sample),
            f"decodes to {pixels.shape[1]} x {pixels.shape[0]} pixels, its header says "
            f"{width} x {height}",
        )
    return pixels
