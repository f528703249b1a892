"""The job of all converters: the same folder of images and the same settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fastrot.benchmarks.compare.stream import Delivery, Stream
from fastrot.data.sources.find import list_source


@dataclass(frozen=True)
class ConversionJob:
    """One job for all converters.

    Attributes:
        source: folder of images.
        out: file to write; replaced by every conversion.
        max_side: longest side of a stored image, in pixels; None: unchanged.
        quality: quality of the JPEGs, 1 to 100.
        workers: number of processes or threads.
        copy: fastrot's converter keeps the bytes of the JPEGs.
    """

    source: str
    out: str
    max_side: int | None
    quality: int
    workers: int
    copy: bool = False

    @cached_property
    def files(self) -> list[Path]:
        """Return the paths of all images, ordered by name."""
        listing = list_source(self.source, kind="folder")
        return [Path(listing.root) / name for name in listing.paths]


def conversions(convert: Callable[[], int]) -> Stream:
    """Return a stream of conversions; ``convert`` returns the number of images that it stored."""
    return Stream(_again(convert))


def _again(convert: Callable[[], int]) -> Iterator[Delivery]:
    while True:
        yield Delivery(convert())
