from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from fastrot.data.sources.voc import CLASSES
from fastrot.errors import BadDataError, UsageError
from fastrot.evaluation.svm.folds import stratified_folds


def test_samples_are_dealt_in_order_and_each_column_by_itself():
    columns = np.array(
        [
            [True, False],
            [False, False],
            [True, True],
            [False, True],
            [False, True],
            [True, False],
            [False, False],
        ]
    )
    found = stratified_folds(columns, 3)
    assert found.dtype == np.int8
    # The folds that fastrot dealt by itself before it asked scikit-learn.
    assert found.T.tolist() == [[0, 0, 1, 0, 1, 2, 2], [0, 0, 0, 1, 2, 1, 2]]


def test_each_fold_has_as_many_of_each_as_every_other():
    rng = np.random.default_rng(1)
    positive = rng.random((5011, 20)) < rng.uniform(0.01, 0.6, 20)
    found = stratified_folds(positive, 3)
    for sign in (positive, ~positive):
        counts = np.stack([(sign & (found == fold)).sum(0) for fold in range(3)])
        assert (np.ptp(counts, axis=0) <= 1).all() and (counts.sum(0) == sign.sum(0)).all()


def test_a_class_with_too_few_images_is_named():
    positive = np.zeros((30, 20), bool)
    positive[:5] = True
    positive[1:, 9] = False
    with pytest.raises(BadDataError, match=r"class cow: 1 positives among 30 .* than 3 folds"):
        stratified_folds(positive, 3, CLASSES)
    with pytest.raises(BadDataError, match="class number 9"):
        stratified_folds(positive, 3)
    with warnings.catch_warnings(record=True):  # what the published code would continue with
        warnings.simplefilter("always")
        one = np.arange(30) == 4
        parts = [test for _, test in StratifiedKFold(3).split(one, one)]
        assert sum(bool(one[part].any()) for part in parts) == 1
    positive[:, 9] = True
    with pytest.raises(BadDataError, match="class cow: 0 negatives"):
        stratified_folds(positive, 3, CLASSES)


@pytest.mark.parametrize("folds", [1, 0, 128])
def test_other_numbers_of_folds(folds):
    with pytest.raises(UsageError, match=f"folds={folds} must be from 2"):
        stratified_folds(np.array([[True], [False]] * 9), folds)
