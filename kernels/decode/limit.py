"""Cost of decoding alone: the upper limit for every loader that uses this decoder."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastrot.kernels.decode.crop import CropDecoder, Crops
from fastrot.kernels.decode.header import jpeg_header

_DEADLINE_SECONDS = 600.0


def decode_crops(
    files: Sequence[bytes],
    boxes: NDArray[np.int32],
    threads: int,
    *,
    size: int,
    exact: bool = True,
) -> float:
    """Return the seconds it takes to decode the rows and columns of boxes, without resizing.

    Args:
        files: N JPEGs, upright.
        boxes: of shape (N, 4), int32, inside the images.
        threads: number of threads.
        size: S, which determines shrinking in the DCT domain, unless ``exact``.
        exact: never shrink.

    Raises:
        ValueError: a file cannot be decoded, or decoding took longer than ten minutes.
    """
    headers = [jpeg_header(file) for file in files]
    crops = Crops(
        boxes=boxes,
        sizes=np.array([[header.width, header.height] for header in headers], np.int32),
        orientation=np.ones(len(files), np.uint8),
        raw=np.zeros(len(files), np.bool_),
        to_end=np.zeros(len(files), np.bool_),
    )
    decoder = CropDecoder(threads, size=size, exact=exact)
    start = time.perf_counter()
    job = decoder.submit_memory(None, crops, files)
    finished = job.wait(_DEADLINE_SECONDS)
    seconds = time.perf_counter() - start
    if not finished or job.failures():
        raise ValueError(f"not decoded: {job.failures()[:1] or 'took too long'}")
    return seconds
