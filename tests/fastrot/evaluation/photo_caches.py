"""Feature caches of real photos for tests of evaluators: thumbnails as features, in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrot.data.images.decode import decode_image
from fastrot.features.cache import FeatureCache
from tests.fastrot.features.written_cache import write_cache


def thumbnails(folder: Path, each: int, classes: int, *, skip: int = 0) -> NDArray[np.float32]:
    """(classes * each, 1,024 or so) grey thumbnails of photos in class folders, in class order."""
    rows = []
    for of_class in sorted(folder.iterdir())[:classes]:
        for path in sorted(of_class.iterdir())[skip : skip + each]:
            pixels = decode_image(path.read_bytes(), apply_exif=True)[:128, :128]
            rows.append(pixels[::6, ::6].reshape(-1)[:1200] / 255.0)
    return np.stack(rows).astype(np.float32)


def photo_cache(
    path: Path, features: NDArray[np.float32], labels: NDArray[np.int8] | NDArray[np.int64]
) -> FeatureCache:
    """A cache of one layer, ``layer3``."""
    return write_cache(
        path, features={"layer3": features}, labels=labels, fingerprint={"photos": path.name}
    )


def several(labels: NDArray[np.int64], classes: int) -> NDArray[np.int8]:
    """Labels of shape (n, classes), of which every seventh absent one is difficult."""
    table = np.where(np.arange(classes) == labels[:, None], 1, -1).astype(np.int8)
    difficult = np.arange(table.size).reshape(table.shape) % 7 == 0
    table[difficult & (table == -1)] = 0
    return table
