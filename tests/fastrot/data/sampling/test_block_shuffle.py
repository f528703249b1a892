"""Order by blocks: every sample once, the same on every rank, few pages at a time, well mixed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.beton.format import MIN_PAGE_SIZE, Field, Kind
from fastrot.data.beton.writer import BetonWriter
from fastrot.data.sampling.block_shuffle import WINDOW, block_length
from fastrot.data.sampling.sampler import Sampler
from fastrot.errors import UsageError


def by_blocks(n, batch, **more) -> Sampler:
    return Sampler(n, batch, mode="block", **{"seed": 5, "block": 10, "window": 4} | more)


def epoch_ids(order, epoch=0, start_step=0):
    return np.concatenate([np.zeros(0, np.int64), *order.batches(epoch, start_step)])


SHAPES = dict(
    n=st.integers(1, 200),
    batch=st.integers(1, 60),
    block=st.integers(1, 50),
    window=st.integers(1, 9),
    epoch=st.integers(0, 3),
)


@settings(deadline=None)
@given(**SHAPES)
def test_every_sample_once(n, batch, block, window, epoch):
    order = by_blocks(n, batch, block=block, window=window, drop_last=False)
    assert sorted(epoch_ids(order, epoch)) == list(range(n))


@settings(deadline=None)
@given(**SHAPES, world=st.integers(1, 4))
def test_ranks_share_what_one_would_read(n, batch, block, window, epoch, world):
    shape = dict(block=block, window=window, drop_last=False)
    alone = by_blocks(n, batch, **shape)
    ranks = [by_blocks(n, batch, rank=rank, world=world, **shape) for rank in range(world)]
    for step in range(alone.steps_per_epoch):
        together = [rank.rank_ids(epoch, step) for rank in ranks]
        assert np.array_equal(np.concatenate(together), alone.global_ids(epoch, step))


@settings(deadline=None)
@given(**SHAPES, data=st.data())
def test_an_epoch_goes_on_from_any_step(n, batch, block, window, epoch, data):
    order = by_blocks(n, batch, block=block, window=window, drop_last=False)
    step = data.draw(st.integers(0, order.steps_per_epoch))
    whole = epoch_ids(order, epoch)
    assert np.array_equal(epoch_ids(order, epoch, start_step=step), whole[step * batch :])


@settings(deadline=None)
@given(**SHAPES)
def test_a_step_reads_the_blocks_of_its_windows(n, batch, block, window, epoch):
    """Windows of at most ``window`` blocks follow each other; none is read from before its turn."""
    order = by_blocks(n, batch, block=block, window=window, drop_last=False)
    ids = epoch_ids(order, epoch)
    blocks = -(-n // block)
    windows = -(-blocks // window)
    first, last = {}, {}
    for place, sample in enumerate(ids.tolist()):
        first.setdefault(sample // block, place)
        last[sample // block] = place
    most = max(sum(first[b] <= place <= last[b] for b in first) for place in range(n))
    assert most <= window
    smallest = blocks // windows  # windows differ by a block at most
    for step in range(order.steps_per_epoch):
        touched = {sample // block for sample in order.global_ids(epoch, step).tolist()}
        reached = 2 + max(0, batch - 2) // max(1, (smallest - 1) * block + 1)
        assert len(touched) <= window * reached


def test_epochs_and_seeds_differ():
    base = epoch_ids(by_blocks(1000, 100))
    assert np.array_equal(base, epoch_ids(by_blocks(1000, 100)))
    assert not np.array_equal(base, epoch_ids(by_blocks(1000, 100), epoch=1))
    assert not np.array_equal(base, epoch_ids(by_blocks(1000, 100, seed=6)))
    first_windows = [set(epoch_ids(by_blocks(1000, 40), e)[:40] // 10) for e in range(4)]
    assert len(set(map(frozenset, first_windows))) == 4, "other blocks meet in every epoch"


def test_what_fits_one_window_is_in_the_order_of_mode_random():
    blocks = by_blocks(1000, 100, block=8)
    wide = by_blocks(1000, 100, block=8, window=125)
    random = Sampler(1000, 100, seed=5)
    assert np.array_equal(epoch_ids(wide, 2), epoch_ids(random, 2))
    assert not np.array_equal(epoch_ids(blocks, 2), epoch_ids(random, 2))


def test_order_is_pinned():
    """A resumed run continues the order that it began with."""
    ids = epoch_ids(by_blocks(5003, 5003, block=17, window=8), epoch=3)
    assert hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest() == PINNED_DIGEST


PINNED_DIGEST = "0222d8e24124765a989f9fb0059c054f5b533192c40f333d5fada4344d859afa"


def test_batches_are_mixed():
    """A file sorted by class: batches have many classes, in the shares that chance gives.

    100 classes in 100,000 samples, each class in 10 blocks; a window has 128 of 1,000 blocks.
    """
    n, batch = 100_000, 256
    order = Sampler(n, batch, seed=1, mode="block", block=100)
    classes, spread = [], []
    for step in range(order.steps_per_epoch):
        ids = order.global_ids(0, step)
        classes.append(len(set((ids // 1000).tolist())))
        spread.append(len(set((ids // 100).tolist())))
    # Drawn from the whole file at once, 256 samples have 92 classes on average.
    assert np.mean(classes) > 60 and min(classes) > 45
    # 256 draws from 125 to 128 blocks leave 13 % of them out.
    assert np.mean(spread) > 100 and min(spread) > 85
    follow = np.abs(np.diff(epoch_ids(order))) == 1
    assert follow.mean() < 2 * (2 / (WINDOW * 100)), "twice what chance gives"


def test_pages_of_a_real_file(tmp_path):
    """Samples of any size: a step touches the pages of a window, of two where they meet."""
    path, page = tmp_path / "x.beton", MIN_PAGE_SIZE
    rng = np.random.default_rng(0)
    sides = rng.integers(20, 400, 300)
    with BetonWriter(path, [Field("image", Kind.IMAGE)], capacity=300, page_size=page) as writer:
        for side in sides:
            writer.add(np.zeros((side, side, 3), np.uint8))
        writer.commit()
    samples = BetonDataset(path)
    assert samples.stored_bytes == 3 * (sides.astype(np.int64) ** 2).sum()
    pages = samples.file.data_pointers // page
    assert len(set(pages.tolist())) > 20
    block = block_length(samples.stored_bytes, len(samples)) // 4  # 2 MiB: one of these pages
    assert 5 < block < 25
    order = Sampler(300, 8, mode="block", block=block, window=3)
    touched = [len(set(pages[order.global_ids(0, g)].tolist())) for g in range(37)]
    blocks = [set(range(start, start + block)) for start in range(0, 300, block)]
    widest = max(len(set(pages[[i for i in b if i < 300]].tolist())) for b in blocks)
    assert max(touched) <= 2 * 3 * widest and np.mean(touched) <= 3 * widest
    random = Sampler(300, 8, mode="random")
    assert np.mean(touched) < 0.8 * np.mean(
        [len(set(pages[random.global_ids(0, g)].tolist())) for g in range(37)]
    )


def test_block_length_is_eight_mebibytes():
    assert block_length(2**23 * 10, 1000) == 100
    assert block_length(1_281_167 * 110_000, 1_281_167) == 76
    assert block_length(2**40, 10) == 1, "samples larger than a block"
    assert block_length(0, 7) >= 7, "nothing is known: one block"


def test_a_billion_samples_are_not_ordered_at_once():
    """Only the window of a step is drawn: no array of n."""
    order = Sampler(10**9, 512, mode="block", block=10_000)
    ids = order.global_ids(0, 1_234_567)
    assert len(set(ids.tolist())) == 512
    assert len(set((ids // 10_000).tolist())) <= 2 * WINDOW


def test_impossible_blocks_are_refused():
    with pytest.raises(UsageError, match="block=0"):
        by_blocks(10, 2, block=0)
    with pytest.raises(UsageError, match="window=0"):
        by_blocks(10, 2, window=0)
