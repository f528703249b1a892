"""Competitors of ``fastrot bench loader --what prepare``: each delivery is a whole conversion."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastrot.benchmarks.compare.stream import Delivery, Stream
from fastrot.data.sources.find import list_source
from fastrot.errors import MismatchError

_COPIED = 2**20  # bytes at a time
_CHUNK = 16  # images that a worker takes at a time: the default of 100 leaves some idle at the end

Convert = Callable[[], int]
"""One conversion; it returns the number of images that it stored."""


@dataclass(frozen=True)
class ConversionJob:
    """One job for all converters."""

    source: str  # folder of images
    out: str  # file to write; replaced by every conversion
    max_side: int | None  # longest side of a stored image, in pixels; None: unchanged
    quality: int  # quality of the JPEGs, 1 to 100
    workers: int  # number of processes or threads
    converter: str = "prepare"  # key of ``CONVERTERS``

    @cached_property
    def files(self) -> list[Path]:
        """Return the paths of all images, ordered by name."""
        listing = list_source(self.source, kind="folder")
        return [Path(listing.root) / name for name in listing.paths]


def open_stream(job: Mapping[str, Any]) -> Stream:
    """Return a stream of conversions by the converter that the job names.

    Raises:
        MismatchError: a package that the converter needs is not installed.
    """
    asked = ConversionJob(**job)
    convert = CONVERTERS[asked.converter](asked)
    return Stream(map(Delivery, iter(convert, None)))


def _prepare(job: ConversionJob) -> Convert:
    """Return ``fastrot prepare``: strict decoding, shuffled, checksums, manifest, synced."""
    from fastrot.data.prepare.convert import prepare
    from fastrot.data.prepare.options import PrepareRequest

    copy = job.converter == "prepare --copy"
    request = PrepareRequest(
        Path(job.source),
        Path(job.out),
        kind="folder",
        max_side=None if copy else job.max_side,
        quality=None if copy else job.quality,
        copy=copy,
        workers=job.workers,
        overwrite=True,
        progress=False,
    )
    return lambda: prepare(request).num_samples


def _ffcv(job: ConversionJob) -> Convert:
    """Return FFCV's DatasetWriter with images that Pillow decodes, as its documentation recommends.

    It shrinks with OpenCV's INTER_AREA, while fastrot uses Hamming's filter. It checks nothing,
    keeps the order of the folder, writes no checksums, and does not sync to disk.
    """
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    def convert() -> int:
        image = RGBImageField(
            write_mode="jpg", max_resolution=job.max_side, jpeg_quality=job.quality
        )
        fields = {"image": image, "label": IntField()}
        writer = DatasetWriter(job.out, fields, num_workers=job.workers)
        writer.from_indexed_dataset(_Images(job.files), chunksize=_CHUNK)
        return len(job.files)

    return convert


class _Images:
    """Dataset of Pillow images, each with a label."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.open(self._files[index]).convert("RGB"), 0


def _limit(job: ConversionJob) -> Convert:
    """Return OpenCV's decoding, shrinking and encoding in threads, without checks or writing.

    This is what FFCV's writer does to an image, without its processes. OpenCV decodes and encodes
    with libjpeg-turbo. A converter that shrinks with a longer filter has more work to do.
    """
    try:
        cv2 = import_module("cv2")
    except ImportError as error:
        raise MismatchError(f"OpenCV is missing ({error})") from None
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(job.workers)

    def encode(path: Path) -> None:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        height, width = image.shape[:2]
        shrink = (job.max_side or max(height, width)) / max(height, width)
        if shrink < 1:
            side = max(1, int(width * shrink)), max(1, int(height * shrink))
            image = cv2.resize(image, side, interpolation=cv2.INTER_AREA)
        cv2.imencode(".jpg", image, [int(cv2.IMWRITE_JPEG_QUALITY), job.quality])

    return lambda: len(list(pool.map(encode, job.files)))


def _file_copy(job: ConversionJob) -> Convert:
    """Return a copy of all files into one, synced: the limit of ``fastrot prepare --copy``."""

    def convert() -> int:
        with open(job.out, "wb") as out:
            for path in job.files:
                with path.open("rb") as file:
                    shutil.copyfileobj(file, out, _COPIED)
            out.flush()
            os.fsync(out.fileno())
        return len(job.files)

    return convert


CONVERTERS: Mapping[str, Callable[[ConversionJob], Convert]] = {
    "prepare": _prepare,
    "prepare --copy": _prepare,
    "ffcv": _ffcv,
    "limit": _limit,
    "file_copy": _file_copy,
}
