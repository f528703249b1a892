"""The embedded dataset: scikit-learn's handwritten digits as two small ``.beton`` files.

1,797 images of 8 x 8 values from 0 to 16 (UCI "Optical Recognition of Handwritten Digits"),
enlarged to 32 x 32 RGB and stored raw: 1,497 for training, 30 of each digit held out. They come
with scikit-learn, so nothing is downloaded. Importing this module imports no torch.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastrot import __version__
from fastrot.data.beton import manifest
from fastrot.data.beton.format import MIN_PAGE_SIZE, Field, Kind
from fastrot.data.beton.reader import BetonFile
from fastrot.data.beton.writer import BetonWriter
from fastrot.data.sampling.philox import Stream, philox_u64
from fastrot.errors import BadDataError, MismatchError, UsageError

SIDE = 32
"""Pixels per side after enlarging."""

TRAIN_NAME, VAL_NAME = "digits-train.beton", "digits-val.beton"

_HELD_OUT = 30  # of each digit
_LEVELS = 16  # the brightest value
_SEED = 0
_IDENTITY = "scikit-learn digits, 32 px, 30 of each held out, version 1"
_PATIENCE_SECONDS = 60.0


def write_digits(folder: str | Path) -> tuple[Path, Path]:
    """Write the two files into ``folder`` unless they exist already.

    Several processes may do so at once; each of them gets complete files.

    Args:
        folder: created if it does not exist.

    Returns:
        The paths of the training file and of the held-out file.

    Raises:
        MismatchError: another process has been writing them for more than a minute.
        StorageError: they cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / TRAIN_NAME, folder / VAL_NAME
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while missing := [path for path in paths if not _is_there(path)]:
        try:
            _write(*paths, missing)
        except MismatchError:  # another process is writing it
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    return paths


def _is_there(path: Path) -> bool:
    try:
        with BetonFile.open(path) as file:
            found = manifest.load(file)
    except (UsageError, BadDataError):  # missing, or damaged: it is written again
        return False
    return found is not None and found.source_hash == _IDENTITY


def _write(train: Path, val: Path, missing: list[Path]) -> None:
    images, labels = digits()
    for path, rows in zip((train, val), split(labels), strict=True):
        if path not in missing:
            continue
        fields = Field("image", Kind.IMAGE), Field("label", Kind.INT)
        with BetonWriter(path, fields, capacity=len(rows), page_size=MIN_PAGE_SIZE) as writer:
            if _is_there(path):  # written meanwhile by a process that may be reading it already
                continue
            for row in rows:
                writer.add(images[row], int(labels[row]))
            writer.commit(
                class_names=[str(digit) for digit in range(10)],
                source_hash=_IDENTITY,
                made_by={"program": f"fastrot {__version__}", "order": f"shuffled, seed {_SEED}"},
            )


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return all images, of shape (1797, 32, 32, 3), and labels, in the order of scikit-learn."""
    from sklearn.datasets import load_digits  # half a second to import

    data = load_digits()
    images = np.empty((len(data.target), SIDE, SIDE, 3), dtype=np.uint8)
    for row, small in enumerate(data.images.astype(np.float32) * (255 / _LEVELS)):
        # Resized as floats, so that values are rounded to bytes only once, at the end.
        large = np.asarray(Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        images[row] = np.rint(large).clip(0, 255).astype(np.uint8)[:, :, None]
    return images, data.target.astype(np.int64)


def split(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return training rows and held-out rows, both shuffled; 30 of each label are held out."""
    shuffled = np.argsort(philox_u64(_SEED, 0, np.arange(len(labels)), Stream.ORDER))
    rank_in_class = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = shuffled[labels[shuffled] == label]
        rank_in_class[rows] = np.arange(len(rows))
    held_out = rank_in_class[shuffled] < _HELD_OUT
    return shuffled[~held_out], shuffled[held_out]
