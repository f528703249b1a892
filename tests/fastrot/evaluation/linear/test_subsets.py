"""Balanced shares of the labels."""

from __future__ import annotations

import numpy as np
import pytest

from fastrot.evaluation.linear.subsets import balanced_subset, describe_subset

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 300))


@pytest.mark.parametrize(("share", "each"), [(0.01, 3), (0.1, 30)])
def test_every_class_has_the_same_number(share: float, each: int) -> None:
    ids = balanced_subset(LABELS, share, seed=0)
    assert np.bincount(LABELS[ids]).tolist() == [each] * 20
    assert (np.diff(ids) > 0).all() and ids.dtype == np.int64


def test_one_percent_is_a_part_of_ten() -> None:
    one, ten = (balanced_subset(LABELS, share, seed=3) for share in (0.01, 0.1))
    assert set(one) < set(ten)


def test_a_seed_makes_another_choice_and_the_same_seed_the_same() -> None:
    first, again, other = (balanced_subset(LABELS, 0.1, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert len(set(first) & set(other)) < 0.2 * len(first)


def test_a_class_gives_at_least_one_and_at_most_all() -> None:
    labels = np.array([0] * 96 + [1] * 3 + [2])
    assert np.bincount(labels[balanced_subset(labels, 0.01, 0)]).tolist() == [1, 1, 1]
    assert np.bincount(labels[balanced_subset(labels, 0.5, 0)]).tolist() == [17, 3, 1]


def test_a_class_without_samples_is_no_class_of_the_share() -> None:
    labels = np.repeat([0, 2, 5], 10)
    assert np.bincount(labels[balanced_subset(labels, 0.2, 0)]).tolist() == [2, 0, 2, 0, 0, 2]


def test_scores_say_what_the_share_is_and_is_not() -> None:
    ids = balanced_subset(LABELS, 0.01, seed=0)
    note = describe_subset(LABELS, ids, 0.01, 0)
    assert note["images"] == 60 and note["images_a_class"] == [3, 3]
    assert note["label"].startswith("frozen-feature probe on 1 % of the labels")
    assert "fine-tune the whole network" in note["label"]
