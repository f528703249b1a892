"""A random order that reads neighbours of a file together, for files larger than memory.

Samples that lie side by side form a block; the blocks of an epoch are drawn in a random order,
some of them at a time form a window, and the samples of a window are shuffled among themselves.
So every batch mixes samples of the whole file, but until its window is used up only the window's
blocks are read: each page of the file comes from the disk once an epoch.

Working set: the samples of a step lie in one window, or in two where one ends within the step.
With the settings of ``block_length`` a block has 8 MiB of data and a window 128 blocks, so that
1 GiB (2 GiB where windows meet) of free memory on each machine keeps every page until all of its
samples were read, whatever the size of the file and the number of ranks.

An epoch of at most one window has exactly the order that mode ``random`` has. Both sort their
random keys with ``stable_argsort``.

Importing this module imports no torch. Shapes: n samples, W windows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrot.data.sampling.philox import Stream, philox_u64

WINDOW = 128
"""Blocks that are shuffled together."""

_BLOCK_BYTES = 2**23


def block_length(stored_bytes: int, num_samples: int) -> int:
    """Samples of a block: as many as have 8 MiB on average, and at least one.

    8 MiB is the usual page of a ``.beton`` file; a disk reads as much in one go at full speed.

    Args:
        stored_bytes: of all samples together.
        num_samples: n.
    """
    return max(1, _BLOCK_BYTES * num_samples // max(stored_bytes, 1))


class Blocks(NamedTuple):
    """What an order by blocks depends on, but for the epoch.

    Attributes:
        num_samples: n.
        length: samples of a block; the last one of the file may have fewer.
        window: blocks that are shuffled together, at most.
        seed: 64-bit key.
    """

    num_samples: int
    length: int
    window: int
    seed: int

    def ids(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """The sample ids at places ``start`` to ``stop`` of an epoch, of shape (stop - start,)."""
        _, bounds = _windows(self, epoch)
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        parts = []
        while start < stop:
            end = min(stop, int(bounds[first + 1]))
            within = _shuffled_window(self, epoch, first)
            parts.append(within[start - bounds[first] : end - bounds[first]])
            start, first = end, first + 1
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def stable_argsort(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """What ``np.argsort(keys, kind="stable")`` gives, in a tenth of the time for random keys.

    Each index replaces the lowest bits of its key, and plain numbers are sorted, for which numpy
    has vector instructions. Keys that differ in those bits only are put in order afterwards;
    among a million random ones there is such a pair in 3 of 100 permutations.
    """
    mask = np.uint64((1 << (len(keys) - 1).bit_length()) - 1)
    packed = keys & ~mask
    packed |= np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    order = (packed & mask).astype(np.int64)
    packed &= ~mask
    equal = packed[1:] == packed[:-1]
    if equal.any():
        tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
        among = order[tied]
        order[tied] = among[np.lexsort((among, keys[among]))]
    return order


@lru_cache(maxsize=4)
def _windows(blocks: Blocks, epoch: int) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """The blocks of every window, and the place in the epoch where each begins, (W + 1,)."""
    count = -(-blocks.num_samples // blocks.length)
    keys = philox_u64(blocks.seed, epoch, np.arange(count, dtype=np.uint64), Stream.BLOCK)
    order = stable_argsort(keys)
    # Windows of nearly the same size: a short last one would mix less than the others.
    windows = np.array_split(order, -(-count // blocks.window))
    samples = [len(window) * blocks.length for window in windows]
    missing = count * blocks.length - blocks.num_samples
    samples[next(i for i, window in enumerate(windows) if count - 1 in window)] -= missing
    return windows, np.concatenate([[0], np.cumsum(samples)])


@lru_cache(maxsize=4)
def _shuffled_window(blocks: Blocks, epoch: int, index: int) -> NDArray[np.int64]:
    """The samples of a window in the order of the epoch."""
    window = np.sort(_windows(blocks, epoch)[0][index])
    ids = (window[:, None] * blocks.length + np.arange(blocks.length)).ravel()
    ids = ids[ids < blocks.num_samples]
    shuffled = ids[stable_argsort(philox_u64(blocks.seed, epoch, ids, Stream.ORDER))]
    shuffled.flags.writeable = False
    return shuffled
