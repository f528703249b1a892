"""The compiled extension; dtypes of arrays are exact, nothing is converted."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

built_with_decode: bool
"""Whether libjpeg-turbo's and xxHash's headers were there when the extension was built."""

libjpeg_version: str | None
"""Version of libjpeg-turbo's headers, e.g. "2.1.5"; None without decode."""

simd: str | None
"""Instructions of the resize on this processor: ``avx2`` or ``scalar``; None without decode."""

def rotate_views(images: Any, turns: Any, flips: Any, table: Any, views: Any, threads: int) -> None:
    """Fill ``views`` of shape (N*V, S, S, C); table and views both int16 or both int32 (bits)."""

def scalar_products(queries: Any, bank: Any, rows: Any, products: Any, threads: int) -> None:
    """Fill ``products`` (m, c), float32, with those of queries (m, D) and rows (m, c) of a bank.

    Sums are float64, rounded once; fastest where the rows of a query increase.
    """

def decode_jpeg(data: Any, max_pixels: int, denominator: int) -> NDArray[np.uint8]:
    """Pixels of shape (H, W, 3), both divided by 1, 2, 4 or 8 and rounded up.

    ValueError with libjpeg's words for anything but a sound file.
    """

def walk_jpeg(data: Any) -> tuple[int, int, int, int, int, int] | None:
    """What kernels/decode/markers.py says of an ordinary file; None: of any other."""

def read_jpeg(path: bytes, size: int) -> tuple[bytes, tuple[int, int, int, int, int, int]] | None:
    """The bytes of a file of exactly this size and what ``walk_jpeg`` says of them, or None."""

def announce_files(paths: list[bytes]) -> None:
    """Tell the system that these files will be read soon, without the interpreter's lock."""

class SourceFile:
    """A file of samples; kernels/decode/crop.py says what these classes do."""

    mapped: bool

    def __init__(self, descriptor: int, map: bool) -> None: ...

class CropSettings:
    """What the crops of a batch have in common."""

    def __init__(self, size: int, exact: bool, colour_only: bool, max_pixels: int) -> None: ...

class Crops:
    """Arrays of one row a sample."""

    def __init__(
        self,
        boxes: NDArray[np.int32],
        sizes: NDArray[np.int32],
        orientation: NDArray[np.uint8],
        raw: NDArray[np.uint8],
        to_end: NDArray[np.uint8],
    ) -> None: ...

class BatchTicket:
    """A batch in a pool."""

class DecodePool:
    """Threads that crop."""

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
