"""What is drawn for a batch, and that a bad sample changes its own row only."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from fastrot.data.dataset import BadSampleError
from fastrot.data.digits import write_digits
from fastrot.data.open import open_dataset
from fastrot.data.sampling.crops import Crop, replacement
from fastrot.data.sampling.draw import BatchDraw, BatchDrawer, draw_turns

SEED, EPOCH = 7, 3
CROP = Crop("random_resized", 24, flip=0.5)
IDS = np.array([5, 900, 17, 17, 3])


class BadHeaders:
    """A dataset of which some headers cannot be read, or nothing but the sizes."""

    def __init__(self, size: int, bad: set[int]) -> None:
        self._size, self._bad = size, bad
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self._size

    def sizes(self, samples):
        self.asked += samples.tolist()
        for sample in samples.tolist():
            if sample in self._bad:
                raise error_of(sample)
        return np.stack([100 + samples % 50, 80 + samples % 70], axis=1).astype(np.int32)


def error_of(sample: int) -> BadSampleError:
    return BadSampleError(sample, f"{sample}.jpg", "broken")


def assert_drawn(drawn: BatchDraw, drawer: BatchDrawer, ids) -> None:
    """All columns are those of these ids."""
    ids = np.asarray(ids)
    sizes = drawer.dataset.sizes(ids)
    assert drawn.ids.tolist() == ids.tolist()
    assert drawn.sizes.tolist() == sizes.tolist()
    boxes = drawer.crop.boxes(SEED, EPOCH, ids, sizes[:, 0], sizes[:, 1])
    assert drawn.boxes.tolist() == boxes.tolist()
    assert drawn.flips.tolist() == drawer.crop.flips(SEED, EPOCH, ids).tolist()
    assert drawn.turns.tolist() == draw_turns(drawer.views, SEED, EPOCH, ids).tolist()


@pytest.mark.parametrize("views", ["all", "one"])
def test_a_replacement_changes_its_own_row_only(views) -> None:
    drawer = BatchDrawer(BadHeaders(1000, set()), CROP, SEED, "skip", views)
    drawn = drawer.draw(EPOCH, IDS)
    dtypes = [drawn.ids, drawn.sizes, drawn.boxes, drawn.flips, drawn.turns]
    assert [str(a.dtype) for a in dtypes] == ["int64", "int32", "int32", "bool", "uint8"]
    assert_drawn(drawn, drawer, IDS)
    drawer.dataset.asked.clear()
    wanted = IDS.copy()
    for attempt in range(2):
        drawer.replace(drawn, 2, error_of(int(drawn.ids[2])))
        wanted[2] = replacement(SEED, 17, attempt, 1000)
        assert drawer.dataset.asked == [wanted[2]], "other headers are not read again"
        assert_drawn(drawn, drawer, wanted)
        drawer.dataset.asked.clear()
    assert [error.sample for error in drawn.bad] == [17, replacement(SEED, 17, 0, 1000)]
    assert drawn.ordered.tolist() == IDS.tolist() and drawn.attempts.tolist() == [0, 0, 2, 0, 0]


def test_unreadable_headers_are_replaced_also_where_the_first_replacement_is_bad() -> None:
    first = replacement(SEED, 17, 0, 1000)
    drawer = BatchDrawer(BadHeaders(1000, {17, first}), CROP, SEED, "skip")
    drawn = drawer.draw(EPOCH, IDS)
    wanted = IDS.copy()
    wanted[2:4] = replacement(SEED, 17, 1, 1000)
    good = BatchDrawer(BadHeaders(1000, set()), CROP, SEED)
    assert_drawn(drawn, good, wanted)
    assert {error.sample for error in drawn.bad} == {17, first}

    fatal = BatchDrawer(BadHeaders(1000, {17}), CROP, SEED)
    with pytest.raises(BadSampleError) as caught:
        fatal.draw(EPOCH, IDS)
    assert caught.value.sample == 17
    drawn = good.draw(EPOCH, IDS)
    with pytest.raises(BadSampleError):
        good.replace(drawn, 0, error_of(5))
    assert_drawn(drawn, good, IDS)


def test_replacements_run_out() -> None:
    drawer = BatchDrawer(BadHeaders(50, set(range(50))), CROP, SEED, "skip")
    with pytest.raises(BadSampleError):
        drawer.draw(EPOCH, np.arange(4))


def test_an_epoch_drawn_in_one_call_is_its_batches() -> None:
    drawer = BatchDrawer(BadHeaders(1000, set()), CROP, SEED, "skip", "one")
    whole = drawer.draw(EPOCH, np.arange(40))
    parts = whole.split([16, 0, 16, 8])
    assert [len(part) for part in parts] == [16, 0, 16, 8]
    for part, ids in zip(parts, np.split(np.arange(40), [16, 16, 32]), strict=True):
        assert_drawn(part, drawer, ids)
    drawer.replace(parts[2], 3, error_of(19))
    assert whole.ids[19] == replacement(SEED, 19, 0, 1000) and not parts[0].bad
    assert whole.boxes[19].tolist() == parts[2].boxes[3].tolist()


def test_given_sizes_are_not_asked_for() -> None:
    dataset = BadHeaders(1000, set())
    drawn = BatchDrawer(dataset, CROP, SEED).draw(EPOCH, IDS, sizes=np.full((5, 2), 64, np.int32))
    assert dataset.asked == [] and (drawn.sizes == 64).all()


def test_what_draws_and_what_was_drawn_are_picklable(tmp_path: Path) -> None:
    drawer = BatchDrawer(open_dataset(write_digits(tmp_path)[0]), CROP, SEED, "skip", "one")
    drawn = pickle.loads(pickle.dumps(drawer)).draw(EPOCH, IDS)
    assert_drawn(pickle.loads(pickle.dumps(drawn)), drawer, IDS)
