"""Counter-based random numbers: Philox4x32-10 vectorised over sample ids.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A number depends only on
(seed, epoch, sample id, stream, draw), not on the worker, the rank, the batch size, or earlier
draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLIER = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

_BLOCK = 2**14
"""Ids at a time, so that the rounds work within the processor's cache."""

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]


class Stream(IntEnum):
    """The purposes of random numbers, one stream each, so that adding a draw shifts no other."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    TURN = 3
    JITTER = 4
    REPLACEMENT = 5
    BLOCK = 6
    LIGHTING = 7
    SUBSET = 8
    HOLD_OUT = 9
    LOW_SHOT = 10
    DETECTOR = 11
    AUGMENT = 12


def philox4x32(counter: tuple[ArrayLike, ...], key: tuple[int, int]) -> tuple[U32, U32, U32, U32]:
    """Apply ten rounds to four counter words (broadcast together) under a 64-bit key."""
    words = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    c0, c1, c2, c3 = _ten_rounds(words, key)
    return (
        c0.astype(np.uint32),
        c1.astype(np.uint32),
        c2.astype(np.uint32),
        c3.astype(np.uint32),
    )


def _ten_rounds(words: Sequence[U64], key: tuple[int, int]) -> tuple[U64, U64, U64, U64]:
    """Apply ten rounds to words that fill the lower half of uint64; arguments are not modified.

    Allocating arrays would take as long as the arithmetic, so each round allocates only two and
    otherwise works in place.
    """
    c0, c1, c2, c3 = words
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIER[0] * c0, _MULTIPLIER[1] * c2
        c0 = p1 >> _SHIFT
        c0 ^= c1
        c0 ^= np.uint64(k0)
        c2 = p0 >> _SHIFT
        c2 ^= c3
        c2 ^= np.uint64(k1)
        p0 &= _LOW
        p1 &= _LOW
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def draw(
    seed: int, epoch: int, ids: ArrayLike, stream: Stream, index: int = 0
) -> tuple[U32, U32, U32, U32]:
    """Return four independent uint32 per id, each of shape (N,).

    Args:
        seed: key, in [0, 2**64).
        epoch: index of the epoch, in [0, 2**32).
        ids: sample ids of shape (N,), non-negative.
        stream: purpose of the numbers.
        index: index of the draw in this stream, in [0, 2**24).
    """
    return philox4x32(*_counter_and_key(seed, epoch, ids, stream, index))


def philox_u64(seed: int, epoch: int, ids: ArrayLike, stream: Stream) -> NDArray[np.uint64]:
    """Return one uint64 per id, of shape (N,): the first two numbers of ``draw``."""
    ids = np.asarray(ids)
    numbers = np.empty(len(ids), dtype=np.uint64)
    for start in range(0, len(ids), _BLOCK):
        part = ids[start : start + _BLOCK]
        counter, key = _counter_and_key(seed, epoch, part, stream, 0)
        high, low, _, _ = _ten_rounds(np.broadcast_arrays(*counter), key)
        high <<= _SHIFT
        np.bitwise_or(high, low, out=numbers[start : start + _BLOCK])
    return numbers


def _counter_and_key(
    seed: int, epoch: int, ids: ArrayLike, stream: Stream, index: int
) -> tuple[tuple[ArrayLike, ...], tuple[int, int]]:
    ids = np.asarray(ids).astype(np.uint64)
    counter = (ids & _LOW, ids >> _SHIFT, np.uint64(epoch), np.uint64((stream << 24) | index))
    return counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)


def uniform(bits: U32) -> NDArray[np.float64]:
    """Map uint32 to [0, 1)."""
    return bits.astype(np.float64) * 2.0**-32


def below(bits: U32, bound: ArrayLike) -> NDArray[np.int64]:
    """Map uint32 to integers in [0, bound), by multiplying and shifting (bias below 2**-16)."""
    return ((bits.astype(np.uint64) * np.asarray(bound).astype(np.uint64)) >> _SHIFT).astype(
        np.int64
    )
