"""The compiled extension. Arrays must have exactly these dtypes; nothing is converted."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

built_with_decode: bool
"""Whether the headers of libjpeg-turbo and xxHash were found when the extension was built."""

libjpeg_version: str | None
"""Version of libjpeg-turbo's headers, e.g. "2.1.5"; None: built without decoding."""

simd: str | None
"""Instruction set used for resizing, ``avx2`` or ``scalar``; None: built without decoding."""

def rotate_views(images: Any, turns: Any, flips: Any, table: Any, views: Any, threads: int) -> None:
    """Fill ``views`` of shape (N*V, S, S, C); table and views both int16 or both int32 (bits)."""

def scalar_products(queries: Any, bank: Any, rows: Any, products: Any, threads: int) -> None:
    """Fill ``products`` (m, c), float32, with queries (m, D) times the bank rows (m, c).

    Sums are float64, rounded once; fastest where the rows of each query increase.
    """

def decode_jpeg(data: Any, max_pixels: int, denominator: int) -> NDArray[np.uint8]:
    """Return pixels of shape (H, W, 3); H and W are divided by 1, 2, 4 or 8 and rounded up.

    Raises ValueError with libjpeg's message if the file is not sound.
    """

def walk_jpeg(data: Any) -> tuple[int, int, int, int, int, int] | None:
    """Return what kernels/decode/markers.py finds in an ordinary file; None for any other file."""

def read_jpeg(path: bytes, size: int) -> tuple[bytes, tuple[int, int, int, int, int, int]] | None:
    """Return the bytes of a file of exactly this size and what ``walk_jpeg`` returns, or None."""

def announce_files(paths: list[bytes]) -> None:
    """Tell the system, without holding the GIL, that these files will be read soon."""

class SourceFile:
    """A file of samples; kernels/decode/crop.py documents these classes."""

    mapped: bool

    def __init__(self, descriptor: int, map: bool) -> None: ...

class CropSettings:
    """Settings shared by all crops of a batch."""

    def __init__(self, size: int, exact: bool, colour_only: bool, max_pixels: int) -> None: ...

class Crops:
    """Arrays with one row per sample."""

    def __init__(
        self,
        boxes: NDArray[np.int32],
        sizes: NDArray[np.int32],
        orientation: NDArray[np.uint8],
        raw: NDArray[np.uint8],
        to_end: NDArray[np.uint8],
    ) -> None: ...

class BatchTicket:
    """A batch that was submitted to a pool."""

class DecodePool:
    """Threads that decode and crop."""

    def __init__(self, threads: int) -> None: ...
    def submit_spans(
        self,
        out: NDArray[np.uint8] | None,
        crops: Crops,
        settings: CropSettings,
        file: SourceFile,
        offsets: NDArray[np.uint64],
        sizes: NDArray[np.uint64],
        image: int,
        records: NDArray[np.uint8] | None,
        checksums: NDArray[np.uint64] | None,
        announce: bool,
    ) -> BatchTicket: ...
    def submit_memory(
        self,
        out: NDArray[np.uint8] | None,
        crops: Crops,
        settings: CropSettings,
        buffers: list[NDArray[np.uint8]],
    ) -> BatchTicket: ...
    def wait(self, batch: BatchTicket, seconds: float) -> bool: ...
    def failures(self, batch: BatchTicket) -> list[tuple[int, str]]: ...
    def discard(self, seconds: float) -> bool: ...
