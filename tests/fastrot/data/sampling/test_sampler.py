"""The order of samples: the same global steps on any number of ranks, everything exactly once."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrot.data.sampling.sampler import Sampler
from fastrot.errors import UsageError


def epoch_ids(order, epoch, start_step=0):
    batches = list(order.batches(epoch, start_step))
    return np.concatenate(batches) if batches else np.zeros(0, np.int64)


@given(
    n=st.integers(1, 60),
    batch=st.integers(1, 20),
    epoch=st.integers(0, 5),
    mode=st.sampled_from(["random", "sequential"]),
)
def test_evaluation_covers_every_sample_once(n, batch, epoch, mode):
    order = Sampler(n, batch, seed=1, mode=mode, drop_last=False)
    assert sorted(epoch_ids(order, epoch)) == list(range(n))


@given(
    n=st.integers(1, 200),
    per_rank=st.integers(1, 4),
    world=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    epoch=st.integers(0, 3),
    drop_last=st.booleans(),
)
def test_ranks_partition_the_global_batch(n, per_rank, world, accumulation, epoch, drop_last):
    batch = per_rank * world * accumulation
    if drop_last and n < batch:
        return
    alone = Sampler(n, batch, seed=7, drop_last=drop_last)
    ranks = [
        Sampler(
            n, batch, seed=7, drop_last=drop_last, rank=r, world=world, accumulation=accumulation
        )
        for r in range(world)
    ]
    for step in range(alone.steps_per_epoch):
        shares = [rank.rank_ids(epoch, step) for rank in ranks]
        assert np.array_equal(np.concatenate(shares), alone.rank_ids(epoch, step))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for rank in ranks:
        batches = list(rank.batches(epoch))
        assert len(batches) == rank.steps_per_epoch * accumulation
        assert max(map(len, batches), default=0) <= rank.batch_size
        if drop_last:
            assert {len(ids) for ids in batches} == {rank.batch_size}


def test_epochs_differ_and_repeat():
    order = Sampler(1000, 100, seed=3)
    first, second = epoch_ids(order, 0), epoch_ids(order, 1)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, epoch_ids(Sampler(1000, 100, seed=3), 0))
    assert not np.array_equal(first, epoch_ids(Sampler(1000, 100, seed=4), 0))
    # Neither seed + epoch nor seed * epoch: the epochs of neighbouring seeds share nothing.
    assert not np.array_equal(second, epoch_ids(Sampler(1000, 100, seed=4), 0))


def test_order_is_pinned():
    """A resumed run continues the order that it began with, whatever numpy's version."""
    assert Sampler(10, 10, seed=0).global_ids(0, 0).tolist() == PINNED


PINNED = [2, 8, 0, 5, 9, 7, 6, 3, 4, 1]


def test_order_of_many_samples_is_pinned():
    """More than one block of ids; made by a stable sort of keys that were computed at once."""
    ids = Sampler(100_003, 100_003, seed=7).global_ids(3, 0)
    assert hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest() == PINNED_DIGEST


PINNED_DIGEST = "889d57aceab7258424773a2803067b832bcf013b57a931efb6856efa0207686a"


def test_batches_from_a_step_are_the_tail():
    order = Sampler(100, 12, seed=0, accumulation=2)
    whole = list(order.batches(4))
    tail = list(order.batches(4, start_step=5))
    assert len(tail) == len(whole) - 10
    assert all(np.array_equal(a, b) for a, b in zip(whole[10:], tail, strict=True))
    assert list(order.batches(4, start_step=order.steps_per_epoch)) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(num_samples=0, global_batch=1), "empty"),
        (dict(num_samples=10, global_batch=20), "train.global_batch"),
        (dict(num_samples=10, global_batch=5, world=2), "multiple"),
        (dict(num_samples=10, global_batch=4, world=2, rank=2), "rank=2"),
        (dict(num_samples=10, global_batch=0), "at least 1"),
    ],
)
def test_impossible_orders_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        Sampler(**settings)


def test_a_step_outside_the_epoch_is_an_error():
    with pytest.raises(IndexError):
        Sampler(10, 5).global_ids(0, 2)
