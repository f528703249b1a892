"""``CropDecoder``: turns batches of JPEG or raw samples into uint8 crops, in its own threads.

Each thread handles one sample at a time: it decodes the rows and columns of the box (without
``exact``, shrunk in the DCT domain if the box is at least twice as large as the crop) and resizes
them, antialiased and bilinear, straight into the batch. No thread holds the GIL, and none allocates
memory once it has seen an image of the largest size.

The reference is ``crop_reference.py`` on the pixels of ``op.decode_jpeg``: with ``exact`` no
value differs from it by more than one level. Mirroring or turning an image by quarter turns
mirrors or turns its crop, bit for bit.

Shapes: N samples per batch, S side of a crop, F data fields per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrot.kernels.decode.op import MAX_PIXELS
from fastrot.kernels.dispatch import choose

_STOP_SECONDS = 10.0

# Keeps arrays alive that a thread may still write to, because its read never returns.
_left_behind: list[Any] = []


@dataclass(frozen=True)
class Crops:
    """Boxes to cut out of each sample.

    Attributes:
        boxes: of shape (N, 4), int32: left, top, width, height in the upright image; pixels
            outside the image are black.
        sizes: of shape (N, 2), int32: width and height of the upright images.
        orientation: of shape (N,), uint8: EXIF orientation, 1 to 8.
        raw: of shape (N,), bool: the sample is rows of RGB instead of a JPEG.
        to_end: of shape (N,), bool: read a JPEG beyond its box as well, to find damage there.
    """

    boxes: NDArray[np.int32]
    sizes: NDArray[np.int32]
    orientation: NDArray[np.uint8]
    raw: NDArray[np.bool_]
    to_end: NDArray[np.bool_]


@dataclass(frozen=True)
class Spans:
    """Locations of a batch's samples in a file, and what their checksums cover.

    Attributes:
        offsets: of shape (N, F), uint64, bytes.
        sizes: of shape (N, F), uint64, bytes; 0: the field is empty.
        image: index of the image field.
        records: of shape (N, R), uint8: bytes that a checksum covers before the fields.
        checksums: of shape (N,), uint64, xxh3_64; None: do not compare checksums.
    """

    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    image: int
    records: NDArray[np.uint8]
    checksums: NDArray[np.uint64] | None


class SourceFile:
    """A file to read samples from; it stays open as long as anything refers to it.

    Args:
        descriptor: descriptor of the open file; it is duplicated.
        map_memory: map the file instead of reading by position. If the file is truncated while
            mapped, the sample fails, but the process survives.

    Attributes:
        mapped: whether the file is mapped; one that cannot be mapped is read by position.

    Raises:
        OSError: the descriptor does not belong to an open file.
    """

    def __init__(self, descriptor: int, *, map_memory: bool) -> None:
        from fastrot.kernels import _native

        self.native = _native.SourceFile(descriptor, map_memory)
        self.mapped: bool = self.native.mapped


class CropJob:
    """A batch that was submitted to a decoder."""

    def __init__(self, decoder: CropDecoder, ticket: Any, keep: Any) -> None:
        self._decoder, self._ticket, self._keep = decoder, ticket, keep

    def wait(self, seconds: float) -> bool:
        """Wait at most this many seconds; return whether the batch is finished."""
        if not self._decoder.native.wait(self._ticket, seconds):
            return False
        self._decoder.finished(self)
        return True

    def failures(self) -> list[tuple[int, str]]:
        """Return the rows that could not be decoded, and why; their pixels are undefined."""
        return sorted(self._decoder.native.failures(self._ticket))


class CropDecoder:
    """Threads that decode, crop and resize.

    Args:
        threads: number of threads.
        size: S, pixels.
        exact: never shrink in the DCT domain.
        colour_only: refuse a JPEG that does not have three components or does not end with its end
            marker; FFCV requires both.
        max_pixels: refuse larger images, before anything is allocated.

    Raises:
        KernelUnavailableError: the extension was built without decoding, or FASTROT_KERNELS
            forbids it.
    """

    def __init__(
        self,
        threads: int,
        *,
        size: int,
        exact: bool = True,
        colour_only: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        choose("crop_decode")
        from fastrot.kernels import _native

        self.native = _native.DecodePool(threads)
        self._settings = _native.CropSettings(size, exact, colour_only, max_pixels)
        self._jobs: set[CropJob] = set()

    def submit(
        self,
        out: NDArray[np.uint8] | None,
        crops: Crops,
        file: SourceFile,
        spans: Spans,
        *,
        announce: bool = False,
    ) -> CropJob:
        """Queue a batch of samples of a file.

        Args:
            out: of shape (N, S, S, 3), C-contiguous, to be filled; None: decode but do not resize,
                to measure the cost of decoding alone.
            crops: boxes to cut out.
            file: file to read from.
            spans: locations of the samples in the file.
            announce: tell the system now what will be read.
        """
        ticket = self.native.submit_spans(
            out,
            self._native_crops(crops),
            self._settings,
            file.native,
            spans.offsets,
            spans.sizes,
            spans.image,
            spans.records,
            spans.checksums,
            announce,
        )
        return self._begun(ticket, (out, file, spans))

    def submit_memory(
        self, out: NDArray[np.uint8] | None, crops: Crops, samples: Sequence[Any]
    ) -> CropJob:
        """Queue a batch of N samples in memory, bytes-like objects; otherwise as ``submit``."""
        buffers = [np.frombuffer(sample, np.uint8) for sample in samples]
        ticket = self.native.submit_memory(out, self._native_crops(crops), self._settings, buffers)
        return self._begun(ticket, (out, buffers))

    def discard(self) -> bool:
        """Discard all jobs.

        Returns:
            Whether all threads have stopped writing to their arrays. A thread that hangs in a read
            may still write; the arrays are then kept for as long as the process lives.
        """
        stopped = self.native.discard(_STOP_SECONDS)
        if not stopped:
            _left_behind.append((self.native, self._jobs))
        self._jobs = set()
        return stopped

    def finished(self, job: CropJob) -> None:
        """Release what a job needed."""
        self._jobs.discard(job)

    def _begun(self, ticket: Any, keep: Any) -> CropJob:
        job = CropJob(self, ticket, keep)
        self._jobs.add(job)  # until it is finished, whether or not the caller keeps it
        return job

    def _native_crops(self, crops: Crops) -> Any:
        from fastrot.kernels import _native

        return _native.Crops(
            crops.boxes,
            crops.sizes,
            crops.orientation,
            crops.raw.view(np.uint8),
            crops.to_end.view(np.uint8),
        )
