"""The fast stable order equals numpy's."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastrot.data.sampling.block_shuffle import stable_argsort


@given(
    count=st.integers(1, 300),
    high=st.integers(0, 2**12),
    low=st.integers(0, 2**12),
    shift=st.integers(0, 52),
    seed=st.integers(0, 1000),
)
def test_keys_that_agree_keep_their_order(count, high, low, shift, seed):
    """Equal keys, and keys that differ only in the bits that the sort uses for the index."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, high + 1, count, dtype=np.uint64) << np.uint64(shift)
    keys |= rng.integers(0, low + 1, count, dtype=np.uint64)
    assert np.array_equal(stable_argsort(keys), np.argsort(keys, kind="stable"))
