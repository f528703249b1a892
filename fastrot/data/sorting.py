"""A stable order of random keys, fast. Importing this module imports no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
