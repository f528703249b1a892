"""The data of a loader benchmark, repeated until there is enough, and read into memory.

A small dataset is repeated by writing a larger one. So every competitor reads the same file, has
no more epoch ends than with real data, and draws different crops for each copy of an image.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrot.data.beton import BetonWriter, Field, Kind
from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.beton.format import RAW
from fastrot.data.dataset import Dataset
from fastrot.data.open import open_dataset
from fastrot.data.sources.find import list_source
from fastrot.system.machine import usable_memory

ENOUGH_SAMPLES = 3_000
_CHUNK = 2**22
_SIZES = 1_000  # images whose headers are read to describe a folder


@dataclass(frozen=True)
class BenchData:
    """The data that competitors read."""

    path: Path  # the file or folder that the competitors open
    name: str  # name of the file or folder that the user gave
    samples: int  # number of samples in ``path``
    repeat: int  # how often it contains each image of the source
    num_bytes: int  # size of all encoded images
    raw_share: float  # fraction of the images that are stored as pixels
    mean_side: float  # mean square root of the number of pixels per image
    cached: bool
    """Whether it was read into the page cache before measuring; otherwise it is larger than half of
    the memory, and measurements include the storage."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the path, which concerns only this machine."""
        return {
            "name": self.name,
            "samples": self.samples,
            "repeat": self.repeat,
            "bytes": self.num_bytes,
            "raw_share": self.raw_share,
            "mean_side": round(self.mean_side, 1),
            "cached": self.cached,
        }


def prepare_data(source: Path, *, repeat: int | None, scratch: Path) -> BenchData:
    """Repeat a dataset, describe it, and read it into the page cache.

    Args:
        source: a .beton file or a folder.
        repeat: number of copies; None: enough for 3,000 samples.
        scratch: folder for the repeated dataset.

    Raises:
        UsageError: ``source`` does not exist.
        BadDataError: the data is damaged.
        StorageError: the data cannot be read, or ``scratch`` is full.
    """
    samples = open_dataset(source, checksums=False)
    times = repeat or max(1, -(-ENOUGH_SAMPLES // len(samples)))
    path = source
    if times > 1 and isinstance(samples, BetonDataset):
        path = _repeated_file(samples, times, scratch / "repeated.beton")
    elif times > 1:
        path = repeated_folder(source, times, scratch / "repeated")
    num_bytes, raw_share = _bytes(samples)
    ids = np.unique(np.linspace(0, len(samples) - 1, _SIZES).astype(np.int64))
    sides = np.sqrt(samples.sizes(ids).astype(np.float64).prod(axis=1))
    on_disk = sum(file.stat().st_size for file in _files(path))
    cached = on_disk <= usable_memory() // 2
    if cached:
        for file in _files(path):
            _read(file)
    return BenchData(
        path=path,
        name=source.name,
        samples=len(samples) * times,
        repeat=times,
        num_bytes=num_bytes * times,
        raw_share=raw_share,
        mean_side=float(sides.mean()),
        cached=cached,
    )


def repeated_folder(source: Path, times: int, out: Path) -> Path:
    """Repeat the images of a folder in ``out``, under new names, as links where possible."""
    listing = list_source(source, kind="folder")
    for name in listing.paths:
        original = listing.root / name
        for time in range(times):
            copy = out / Path(name).parent / f"{time:04d}-{Path(name).name}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(original.resolve(), copy)
            except OSError:  # another file system, or one without links
                shutil.copyfile(original, copy)
    return out


def _repeated_file(samples: BetonDataset, times: int, out: Path) -> Path:
    file = samples.file
    shapes = np.stack([file.heights, file.widths], axis=1).tolist()
    fields = (Field("image", Kind.IMAGE), Field("label", Kind.INT))
    with BetonWriter(out, fields, capacity=times * len(file), page_size=file.page_size) as writer:
        for _ in range(times):
            for sample, (height, width) in enumerate(shapes):
                image: Any = file.payload(sample, file.image_field.name)
                if file.modes[sample] == RAW:
                    image = np.frombuffer(image, np.uint8).reshape(height, width, 3)
                writer.add(image, 0)  # labels are not used here
        writer.commit()
    return out


def _bytes(samples: Dataset) -> tuple[int, float]:
    if isinstance(samples, BetonDataset):
        file = samples.file
        return int(file.data_sizes.sum()), float((file.modes == RAW).mean())
    return sum(file.stat().st_size for file in _files(samples.path)), 0.0


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from (file for file in path.rglob("*") if file.is_file())


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(_CHUNK):
            pass
