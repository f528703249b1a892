"""Philox against the known answers of its authors' Random123 library, and the helpers on it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fastrot.data.sampling.philox import Stream, below, draw, philox4x32, philox_u64, uniform

# Random123, kat_vectors, "philox4x32 10": counter, key, answer.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    assert tuple(int(word) for word in philox4x32(counter, key)) == answer


def test_vectorised_equals_one_by_one():
    ids = np.array([0, 1, 7, 2**31, 2**33 + 5])
    together = draw(3, 9, ids, Stream.CROP, 4)
    for row, sample in enumerate(ids):
        alone = draw(3, 9, [sample], Stream.CROP, 4)
        assert [word[row] for word in together] == [word[0] for word in alone]


def test_many_ids_equal_few():
    """One block more than one, at ids on both sides of 32 bits."""
    ids = np.arange(40_000) + 2**32 - 20_000
    high, low, _, _ = draw(11, 2, ids, Stream.ORDER)
    keys = philox_u64(11, 2, ids, Stream.ORDER)
    assert np.array_equal(keys, (high.astype(np.uint64) << np.uint64(32)) | low)
    assert not len(philox_u64(11, 2, [], Stream.ORDER))


def test_every_part_of_the_key_matters():
    base = draw(5, 2, [3], Stream.CROP, 1)
    others = [
        draw(6, 2, [3], Stream.CROP, 1),
        draw(5 + 2**32, 2, [3], Stream.CROP, 1),
        draw(5, 3, [3], Stream.CROP, 1),
        draw(5, 2, [4], Stream.CROP, 1),
        draw(5, 2, [3 + 2**32], Stream.CROP, 1),
        draw(5, 2, [3], Stream.FLIP, 1),
        draw(5, 2, [3], Stream.CROP, 2),
    ]
    values = {tuple(int(word[0]) for word in numbers) for numbers in [base, *others]}
    assert len(values) == 8


def test_numbers_are_uniform_and_streams_independent():
    ids = np.arange(100_000)
    crop, flip = uniform(draw(0, 0, ids, Stream.CROP)[0]), uniform(draw(0, 0, ids, Stream.FLIP)[0])
    assert stats.kstest(crop, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(crop, flip)[0, 1]) < 0.015
    assert abs(np.corrcoef(crop[:-1], crop[1:])[0, 1]) < 0.015
    keys = philox_u64(0, 0, ids, Stream.ORDER)
    assert len(np.unique(keys)) == len(ids)


@given(bound=st.integers(1, 2**16), bits=st.integers(0, 2**32 - 1))
def test_below_stays_below(bound, bits):
    value = int(below(np.array([bits], np.uint32), bound)[0])
    assert 0 <= value < bound
    assert value == bits * bound >> 32
