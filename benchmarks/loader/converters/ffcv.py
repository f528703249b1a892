"""FFCV's DatasetWriter with a data set that Pillow decodes, as FFCV's documentation recommends.

It shrinks with OpenCV's INTER_AREA, while fastrot uses a Lanczos filter. It checks nothing, keeps
the order of the folder, writes no checksums, and does not sync to disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
from PIL import Image

from fastrot.benchmarks.compare.stream import Stream
from fastrot.benchmarks.loader.converters.job import ConversionJob, conversions

_CHUNK = 16  # images that a worker takes at a time: the default of 100 leaves some idle at the end


def open_stream(job: Mapping[str, Any]) -> Stream:
    """Return conversions by FFCV."""
    asked = ConversionJob(**job)
    images = _Images(asked.files)

    def convert() -> int:
        image = RGBImageField(
            write_mode="jpg", max_resolution=asked.max_side, jpeg_quality=asked.quality
        )
        fields = {"image": image, "label": IntField()}
        writer = DatasetWriter(asked.out, fields, num_workers=asked.workers)
        writer.from_indexed_dataset(images, chunksize=_CHUNK)
        return len(images)

    return conversions(convert)


class _Images:
    """Data set of Pillow images, each with a label."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.open(self._files[index]).convert("RGB"), 0
