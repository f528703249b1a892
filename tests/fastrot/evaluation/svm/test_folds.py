from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from fastrot.data.sources.voc import CLASSES
from fastrot.errors import BadDataError, UsageError
from fastrot.evaluation.svm.folds import stratified_folds


def of_scikit_learn(positive, folds):
    found = np.full(len(positive), -1)
    splits = StratifiedKFold(folds).split(np.zeros(len(positive)), np.where(positive, 1, -1))
    for fold, (_, test) in enumerate(splits):
        found[test] = fold
    return found


@given(st.lists(st.booleans(), min_size=4, max_size=80), st.integers(2, 7))
@settings(max_examples=400, deadline=None)
def test_the_folds_are_scikit_learns(values, folds):
    positive = np.array(values)
    if min(positive.sum(), (~positive).sum()) < folds:
        with pytest.raises(BadDataError, match=f"fewer than {folds} folds"):
            stratified_folds(positive, folds)
        return
    found = stratified_folds(positive, folds)
    assert found.dtype == np.int8 and np.array_equal(found, of_scikit_learn(positive, folds))


def test_all_classes_of_voc_at_once():
    rng = np.random.default_rng(1)
    positive = rng.random((5011, 20)) < rng.uniform(0.01, 0.6, 20)
    found = stratified_folds(positive, 3)
    for column in range(20):
        assert np.array_equal(found[:, column], of_scikit_learn(positive[:, column], 3))


def test_row_0_leads_whatever_it_is():
    """The number of each value in a fold depends on which comes first."""
    positive = np.array([False] * 4 + [True] * 4)
    for values in (positive, positive[::-1], ~positive):
        assert np.array_equal(stratified_folds(values, 3), of_scikit_learn(values, 3))


def test_a_class_with_too_few_images_is_named():
    positive = np.zeros((30, 20), bool)
    positive[:5] = True
    positive[1:, 9] = False
    with pytest.raises(BadDataError, match=r"class cow: 1 positives among 30 .* than 3 folds"):
        stratified_folds(positive, 3, CLASSES)
    with pytest.raises(BadDataError, match="class number 9"):
        stratified_folds(positive, 3)
    positive[:, 9] = True
    with pytest.raises(BadDataError, match="class cow: 0 negatives"):
        stratified_folds(positive, 3, CLASSES)
    with warnings.catch_warnings(record=True):  # what the published code would go on with
        warnings.simplefilter("always")
        one = np.arange(30) == 4
        assert len(set(of_scikit_learn(one, 3)[one])) == 1


@pytest.mark.parametrize("folds", [1, 0, 128])
def test_other_numbers_of_folds(folds):
    with pytest.raises(UsageError, match=f"folds={folds} must be from 2"):
        stratified_folds(np.array([True, False] * 9), folds)


@pytest.mark.parametrize("values", [np.array([1, -1]), np.zeros((2, 2, 2), bool)])
def test_other_arrays(values):
    with pytest.raises(UsageError, match="must be bool"):
        stratified_folds(values)
