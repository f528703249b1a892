"""How DistributedDataParallel packs gradients into the buffers that it reduces.

After its first step it packs them in the order in which they became ready: each bucket is closed by
the gradient that fills it, the first one early, so that communication begins early (Li et al.,
"PyTorch Distributed: experiences on accelerating data parallel training", 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

FIRST_BUCKET = 1024 * 1024
"""Bytes at which the first bucket is closed."""
BUCKET = 25 * 1024 * 1024
"""Bytes at which any other is closed: ``bucket_cap_mb`` of torch."""


def bucket_of(sizes: Sequence[int], *, first: int = FIRST_BUCKET, cap: int = BUCKET) -> list[int]:
    """Number of the bucket of each gradient.

    Args:
        sizes: bytes of the gradients, in the order in which they become ready.
        first: bytes at which the first bucket is closed.
        cap: bytes at which any other is.

    Example:
        >>> bucket_of([3, 3, 3, 3, 3], first=2, cap=5)
        [0, 1, 1, 2, 2]
    """
    numbers, number, filled = [], 0, 0
    for size in sizes:
        numbers.append(number)
        filled += size
        if filled >= (cap if number else first):
            number, filled = number + 1, 0
    return numbers
