from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from fastrot.errors import BadDataError, UsageError
from fastrot.evaluation.metrics import average_precision, mean_over_classes, top_k_accuracy

DEFINITIONS = ("voc2010", "sklearn")


def by_the_book(positive, scores):
    """One column, row by row: rank, walk the curve, raise, integrate."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], -i))
    total = sum(bool(p) for p in positive)
    curve, hits = [], 0
    for place, row in enumerate(order, start=1):
        hits += bool(positive[row])
        curve.append((hits, hits / place))
    area, previous = 0.0, 0
    for place, (hits, _) in enumerate(curve):
        area += (hits - previous) / total * max(p for _, p in curve[place:])
        previous = hits
    return area


@pytest.mark.parametrize(
    ("definition", "expected"),
    # Ranked: + - - + +; precisions at the positives 1, 2/4, 3/5; raised 1, 3/5, 3/5.
    [
        ("sklearn", (1 + 1 / 2 + 3 / 5) / 3),
        ("voc2010", (1 + 3 / 5 + 3 / 5) / 3),
    ],
)
def test_a_case_by_hand(definition, expected):
    scores = np.array([0.1, 0.9, 0.7, 0.8, 0.2])
    labels = np.array([1, 1, -1, -1, 1], np.int8)
    assert average_precision(labels, scores, definition) == pytest.approx([expected], abs=1e-15)
    assert average_precision(labels == 1, scores[:, None], definition).shape == (1,)


small = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.booleans(), min_size=n, max_size=n),
        st.lists(st.integers(-3, 3), min_size=n, max_size=n),
    )
)


@given(small)
@settings(max_examples=300, deadline=None)
def test_ties_and_all_small_cases(case):
    positive, scores = np.array(case[0]), np.array(case[1], np.float64)
    if not positive.any():
        for definition in DEFINITIONS:
            assert np.isnan(average_precision(positive, scores, definition)).all()
        return
    columns = np.stack([scores, -scores, np.zeros_like(scores)], axis=1)
    expected = [by_the_book(positive, c) for c in columns.T]
    assert average_precision(positive, columns, "voc2010") == pytest.approx(expected)
    expected = [average_precision_score(positive, c) for c in columns.T]
    assert average_precision(positive, columns, "sklearn") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_scikit_learn_on_many_columns(dtype):
    rng = np.random.default_rng(3)
    labels = rng.random(700) < 0.1
    scores = (rng.normal(size=(700, 23)) + labels[:, None]).astype(dtype)
    found = average_precision(labels, scores, "sklearn")
    assert found == pytest.approx([average_precision_score(labels, c) for c in scores.T], abs=1e-12)
    found = average_precision(labels, scores, "voc2010")
    assert found == pytest.approx([by_the_book(labels, c) for c in scores.T], abs=1e-12)


def test_of_equal_scores_the_later_row_is_first():
    labels = np.array([1, -1], np.int8)
    assert average_precision(labels, np.zeros(2), "voc2010") == [0.5]
    assert average_precision(labels[::-1], np.zeros(2), "voc2010") == [1.0]
    assert average_precision(labels, np.zeros(2), "sklearn") == [0.5]
    assert average_precision(labels[::-1], np.zeros(2), "sklearn") == [0.5]
    minus = np.array([0.0, -0.0])
    assert average_precision(labels, minus, "voc2010") == [0.5], "-0 is 0"


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_difficult_rows_do_not_count(definition):
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 2, 90).astype(np.int8)
    scores = rng.integers(0, 9, (90, 4)).astype(np.float64)
    kept = labels != 0
    expected = average_precision(labels[kept], scores[kept], definition)
    assert np.array_equal(average_precision(labels, scores, definition), expected)
    assert not np.array_equal(average_precision(labels == 1, scores, definition), expected)


def test_columns_are_cut_into_blocks_without_a_trace(monkeypatch):
    rng = np.random.default_rng(0)
    labels, scores = rng.random(50) < 0.3, rng.normal(size=(50, 40))
    whole = average_precision(labels, scores, "voc2010")
    monkeypatch.setattr("fastrot.evaluation.metrics._BLOCK_BYTES", 3 * 50 * 8)
    assert np.array_equal(average_precision(labels, scores, "voc2010"), whole)


def test_the_whole_low_shot_protocol_takes_seconds():
    """15,200 columns of 4,952 rows, here a tenth of them."""
    rng = np.random.default_rng(0)
    labels, scores = rng.random(4952) < 0.05, rng.normal(size=(4952, 1520)).astype(np.float32)
    start = time.process_time()
    assert average_precision(labels, scores, "voc2010").shape == (1520,)
    assert time.process_time() - start < 3


@pytest.mark.parametrize("value", [1.0, np.inf, -np.inf])
def test_only_positives_and_infinite_scores(value):
    labels, scores = np.array([True, True]), np.array([value, 0.0])
    for definition in DEFINITIONS:
        assert average_precision(labels, scores, definition) == [1.0]


@pytest.mark.parametrize(
    ("labels", "scores", "options", "error", "message"),
    [
        (
            [True],
            [0.0],
            {"definition": "voc2012"},
            UsageError,
            "unknown average precision 'voc2012'; choose",
        ),
        ([True, False], [0.0], {}, UsageError, r"labels of shape \(2,\) and scores of shape \(1,"),
        ([1, 0, 0], [0.0] * 3, {}, UsageError, "hold 0 but no -1: absent, or ignored"),
        ([1, 2], [0.0] * 2, {}, UsageError, "row 1: label 2 is not 1"),
        ([1.0, 0.0], [0.0] * 2, {}, UsageError, "labels of float64: must be bool, or integers"),
        ([True, False], [0.0, np.nan], {}, BadDataError, "a score is NaN"),
        ([False, False], [0.0, np.nan], {}, BadDataError, "a score is NaN"),
        (np.zeros(1, np.int8), [0.0], {}, BadDataError, "all 1 rows are marked as ignored"),
        ([], [], {}, UsageError, "labels of float64"),
    ],
)
def test_what_is_refused(labels, scores, options, error, message):
    options = {"definition": "voc2010", **options}
    with pytest.raises(error, match=message):
        average_precision(np.array(labels), np.array(scores), **options)


def test_house_labels_of_zero_and_one_are_what_they_say():
    labels = np.array([1, 0, 0], np.int8)
    assert average_precision(labels, np.array([0.0, 1.0, 2.0]), "voc2010") == [1.0]


def test_the_mean_over_classes_names_those_without_a_value():
    values = np.array([[0.5, 1.0], [np.nan, np.nan], [0.25, 0.0]])
    with pytest.raises(BadDataError, match=r"1 of 3 classes .* undefined: cow; give"):
        mean_over_classes(values, ["cat", "cow", "dog"])
    with pytest.raises(BadDataError, match=r"undefined: 1; give"):
        mean_over_classes(values)
    assert mean_over_classes(values[[0, 2]]).tolist() == [0.375, 0.5]
    assert mean_over_classes(values[[0, 2], 0]) == 0.375
    with pytest.raises(BadDataError, match="no classes"):
        mean_over_classes(values[:0])


def test_top_k_by_hand():
    scores = np.array([[0.1, 0.5, 0.4], [0.3, 0.3, 0.4], [0.2, 0.2, 0.2]])
    labels = np.array([2, 1, 1])
    assert top_k_accuracy(labels, scores) == 0
    assert top_k_accuracy(labels, scores, 2) == pytest.approx(2 / 3), "0 is before 1 in row 1"
    assert top_k_accuracy(labels, scores, 3) == top_k_accuracy(labels, scores, 9) == 1
    assert top_k_accuracy(np.array([0, 0]), np.zeros((2, 4))) == 1
    assert top_k_accuracy(np.array([1, 2, 3]), np.zeros((3, 4))) == 0, "constant scores"


@given(st.integers(1, 40), st.integers(3, 8), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_top_k_is_scikit_learns_without_ties_and_argmax_with_them(n, classes, k, seed):
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, classes, n), rng.normal(size=(n, classes))
    if k < classes:
        expected = top_k_accuracy_score(labels, scores, k=k, labels=np.arange(classes))
        assert top_k_accuracy(labels, scores, k) == pytest.approx(expected)
    tied = rng.integers(0, 2, (n, classes))
    assert top_k_accuracy(labels, tied) == (tied.argmax(axis=1) == labels).mean()


@pytest.mark.parametrize(
    ("labels", "scores", "k", "error", "message"),
    [
        ([0], [[1.0, 0.0]], 0, UsageError, "k=0 must be at least 1"),
        ([0, 1], [[1.0, 0.0]], 1, UsageError, "one row per sample"),
        ([2], [[1.0, 0.0]], 1, BadDataError, "sample 0: label 2 is not one of the 2 classes"),
        ([-1], [[1.0, 0.0]], 1, BadDataError, "label -1"),
        ([0], [[1.0, np.nan]], 1, BadDataError, "a score is NaN"),
    ],
)
def test_top_k_refuses(labels, scores, k, error, message):
    with pytest.raises(error, match=message):
        top_k_accuracy(np.array(labels), np.array(scores), k)


def test_top_k_of_nothing():
    with pytest.raises(BadDataError, match="no samples"):
        top_k_accuracy(np.zeros(0, np.int64), np.zeros((0, 3)))
