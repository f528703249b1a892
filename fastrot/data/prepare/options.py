"""Options, dry run and report of ``fastrot prepare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from fastrot.data.beton.format import (
    ALLOCATION,
    Field,
    Kind,
    align_up,
    metadata_start,
    record_dtype,
)
from fastrot.data.images.decode import DecodeError
from fastrot.data.left_out import LeftOut
from fastrot.data.prepare.encode import DEFAULT_QUALITY, Encoding, Payload, encode_image, keep_file
from fastrot.data.sources.find import Source
from fastrot.errors import StorageError, UsageError
from fastrot.kernels.decode.markers import announce_files

_SHOWN = 20
_TRIED = 24  # number of images that a dry run encodes to estimate the size


class Skipped(NamedTuple):
    """A source image that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class PrepareReport:
    """What ``prepare`` did, or (``dry_run``) would do.

    Attributes:
        out: the .beton file.
        dry_run: whether nothing was written.
        source: the folder that was listed.
        kind: layout of the source: ``folder``, ``coco`` ...
        num_samples: number of images in the file.
        class_names: class names in label order; None: the images have no labels.
        file_bytes: size of the file; an estimate in a dry run.
        seconds: wall time.
        resumed: images stored by an interrupted run; the counts below do not include them.
        kept: with ``copy``, number of JPEGs whose bytes were kept.
        reencoded: with ``copy``, number of the others by reason.
        skipped: bad source images that were left out.
        left_out: everything in the source that is not an image, by kind.
        lost_classes: classes whose images were all skipped.
        notes: further notes on the source, one line each.
    """

    out: Path
    dry_run: bool
    source: Path
    kind: str
    num_samples: int
    class_names: tuple[str, ...] | None
    file_bytes: int = 0
    seconds: float = 0.0
    resumed: int = 0
    kept: int = 0
    reencoded: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    lost_classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as an object of plain values."""
        return {
            "out": str(self.out),
            "dry_run": self.dry_run,
            "source": str(self.source),
            "kind": self.kind,
            "num_samples": self.num_samples,
            "class_names": self.class_names and list(self.class_names),
            "file_bytes": self.file_bytes,
            "seconds": round(self.seconds, 3),
            "resumed": self.resumed,
            "kept": self.kept,
            "reencoded": dict(self.reencoded),
            "skipped": [skipped._asdict() for skipped in self.skipped],
            "ignored": self.left_out.counts,
            "lost_classes": list(self.lost_classes),
            "notes": list(self.notes),
        }

    def show(self, console: Console) -> None:
        """Print the report."""
        labels = "without labels"
        if self.class_names is not None:
            labels = f"in {len(self.class_names):,} classes"
            if len(self.class_names) == 1:
                labels = f"in one class, {self.class_names[0]!r}"
        size = f"{self.file_bytes / 1e6:,.1f} MB"
        if self.dry_run:
            lines = [
                f"{self.source}: {self.num_samples:,} images {labels}",
                f"would write {self.out}, about {size}; nothing was written",
            ]
        else:
            rate = (self.num_samples - self.resumed) / max(self.seconds, 1e-9)
            lines = [
                f"{self.out}: {self.num_samples:,} images {labels}, {size}, "
                f"{self.seconds:.1f} s ({rate:,.0f} images/s)"
            ]
        if self.resumed == self.num_samples:
            lines = [f"{self.out}: {self.num_samples:,} images {labels}, {size}; already finished"]
        elif self.resumed:
            lines.append(f"{self.resumed:,} images were done by the interrupted run")
        if self.kept or self.reencoded:
            lines.append(f"kept the bytes of {self.kept:,} JPEGs")
        if self.kept:
            lines.append(f"their pixels were not decoded: fastrot verify {self.out} does that")
        lines += [f"re-encoded {n:,}: {reason}" for reason, n in sorted(self.reencoded.items())]
        lines += [f"skipped {path!r}: {reason}" for path, reason in self.skipped[:_SHOWN]]
        if (more := len(self.skipped) - _SHOWN) > 0:
            lines.append(f"... and {more:,} more skipped (--json lists all)")
        if self.lost_classes:
            lines.append(f"no image is left of: {', '.join(self.lost_classes)}")
        lines += self.notes
        if self.left_out:
            lines.append(f"left out: {self.left_out}")
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class PrepareRequest:
    """The options of ``prepare``.

    Attributes:
        source: the folder; see ``list_source`` for the layouts.
        out: the file to write; its folder must exist.
        kind: layout of the source, a ``SourceKind``; ``auto`` detects it.
        split: which part to convert, if the source has parts.
        max_side: shrink images until the longest side is at most this many pixels; never enlarge.
        max_pixels: refuse larger images; None: the limit is 64 Mpx, or 268 Mpx for a JPEG that
            ``max_side`` shrinks during decoding.
        quality: JPEG quality, 1 to 100; None: 90.
        copy: keep the bytes of JPEGs that need no change, after checking only their markers; the
            others are stored with quality 90, counted and listed by reason.
        workers: number of processes that decode and encode, or of threads that copy; None: the
            number of cores available to this process; 0: none.
        resume: resume an interrupted run with the same settings, if there is one; leave a finished
            one unchanged.
        overwrite: replace an existing file (once the new one is complete).
        seed: seed for the order of the images in the file.
        page_size: bytes, a power of two from 2 MiB to 2 GiB; None: chosen from the source.
        follow_symlinks: also follow links that lead out of the source folder.
        on_bad_sample: ``fail`` reports the first bad image and stops; ``skip`` leaves bad images
            out and lists them.
        dry_run: only report what would be done.
        progress: show a progress bar, or lines, on standard error.

    Raises:
        UsageError: options contradict each other, or one is out of range.
    """

    source: Path
    out: Path
    kind: str = "auto"
    split: str | None = None
    max_side: int | None = None
    max_pixels: int | None = None
    quality: int | None = None
    copy: bool = False
    workers: int | None = None
    resume: bool = False
    overwrite: bool = False
    seed: int = 0
    page_size: int | None = None
    follow_symlinks: bool = False
    on_bad_sample: str = "fail"
    dry_run: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for flag, value in (("--max-side", self.max_side), ("--quality", self.quality)):
            if self.copy and value is not None:
                raise UsageError(
                    f"--copy keeps the bytes of the images, but {flag}={value} would change them; "
                    "give one of the two"
                )
        if self.max_side is not None and not 1 <= self.max_side <= 65500:
            raise UsageError(f"--max-side={self.max_side} must be from 1 to 65500 pixels")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise UsageError(f"--max-pixels={self.max_pixels} must be at least 1")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UsageError(
                f"--quality={self.quality} must be from 1 to 100 ({DEFAULT_QUALITY} is usual)"
            )
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"--workers={self.workers} must be at least 0 (0: no extra processes)")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"--seed={self.seed} must be from 0 to 2**64 - 1")
        if self.on_bad_sample not in ("fail", "skip"):
            raise UsageError(f"unknown --on-bad-sample={self.on_bad_sample!r}; choose fail or skip")

    @property
    def encoding(self) -> Encoding:
        """Return how images are to be stored."""
        return Encoding(self.copy, self.max_side, self.quality, self.max_pixels)


def check_output(out: Path, *, overwrite: bool) -> None:
    """Check that ``out`` may be written.

    Raises:
        UsageError: it is a folder, its folder does not exist, or it exists without ``overwrite``.
    """
    if out.is_dir():
        raise UsageError(f"{out}: a folder; name the file to write, e.g. {out / 'train.beton'}")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: no such folder {out.parent}; create it first")
    if out.exists() and not overwrite:
        raise UsageError(f"{out}: already exists; choose another name or give --overwrite")


def page_bytes(source: Source) -> int:
    """Return the page size: FFCV's usual 8 MiB, or more if source files suggest larger images.

    A page must hold the largest image. A re-encoded image may be larger than its file, so a page
    has room for twice the largest file. The size depends only on the source, as a resume requires.
    """
    largest = 2 * int(source.sizes.max())
    return min(max(2**23, 1 << (largest - 1).bit_length()), 2**31)


def fields_of(source: Source) -> tuple[Field, Field]:
    """Return the fields of the file, with FFCV's usual names and the image first."""
    image = Field("image", Kind.IMAGE)
    if source.labels.ndim == 1:
        return image, Field("label", Kind.INT)
    return image, Field("labels", Kind.ARRAY, np.dtype(np.int8), source.labels.shape[1:])


def estimate_bytes(source: Source, encoding: Encoding, page_size: int) -> int:
    """Estimate the size of the file by encoding a few images spread over the source."""
    tried = np.unique(np.linspace(0, len(source) - 1, _TRIED).astype(int))
    stored = read = 0
    for sample in tried:
        try:
            stored += encode_image(source.load(int(sample)), encoding).nbytes
            read += int(source.sizes[sample])
        except (DecodeError, OSError):
            continue  # the run itself reports bad images
    images = int(source.sizes.sum() * (stored / read if read else 1))
    fields = fields_of(source)
    in_pages = sum(not field.is_scalar for field in fields)
    metadata = metadata_start(len(fields)) + len(source) * record_dtype(fields).itemsize
    pages = images + len(source) * sum(field.nbytes for field in fields)
    table = len(source) * in_pages * ALLOCATION.itemsize
    return align_up(metadata, page_size) + align_up(pages, page_size) + table


class Encode:
    """Turns the index of a source image into its payload, or the reason why there is none."""

    def __init__(self, source: Source, encoding: Encoding) -> None:
        self._source, self._encoding = source, encoding

    def __call__(self, sample: int) -> Payload | Skipped:
        """Encode one image; a defect is returned as a value, so that the image can be skipped.

        Raises:
            StorageError: permission to read it is denied.
        """
        try:
            return encode_image(self._source.load(sample), self._encoding)
        except DecodeError as error:
            return Skipped(self._source.paths[sample], error.reason)
        except PermissionError:
            raise StorageError(
                f"{self._source.file(sample)}: may not be read; ask for permission"
            ) from None
        except OSError as error:
            return Skipped(self._source.paths[sample], error.strerror or str(error))

    def keep(self, sample: int) -> Payload | None:
        """Return the payload of a file whose bytes can be kept; None if it has to be encoded."""
        size = int(self._source.sizes[sample])
        return keep_file(self._source.file(sample), size, self._encoding.max_pixels)

    def announce(self, samples: Sequence[int]) -> None:
        """Ask the system to read files that are needed soon into memory."""
        announce_files([self._source.file(sample) for sample in samples])
