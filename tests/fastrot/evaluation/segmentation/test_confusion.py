"""Mean intersection over union against the definitions of two public tools, written out plainly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastrot.errors import BadDataError, UsageError
from fastrot.evaluation.segmentation.confusion import ConfusionMatrix
from tests.fastrot.data.annotations.label_files import open_camvid


def matrix_of(pairs, classes):
    matrix = ConfusionMatrix(classes)
    for truth, predicted in pairs:
        matrix.add(truth, predicted)
    return matrix


def by_cityscapes(pairs, classes):
    """One pixel after another: TP / (TP + FP + FN), FP only where the truth is evaluated."""
    counts = {(t, p): 0 for t in (*range(classes), 255) for p in range(classes)}
    for truth, predicted in pairs:
        for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
            counts[t, p] += 1
    values = []
    for k in range(classes):
        right = counts[k, k]
        missed = sum(counts[k, p] for p in range(classes)) - right
        wrong = sum(counts[t, k] for t in range(classes) if t != k)
        total = right + missed + wrong
        values.append(right / total if total else math.nan)
    valid = [value for value in values if not math.isnan(value)]
    return values, sum(valid) / len(valid)


def by_mmsegmentation(pairs, classes):
    """Areas of intersection and union of each class, summed over the images."""
    intersection, union = np.zeros(classes), np.zeros(classes)
    for truth, predicted in pairs:
        kept = truth != 255
        for k in range(classes):
            in_truth, in_prediction = (truth == k) & kept, (predicted == k) & kept
            intersection[k] += (in_truth & in_prediction).sum()
            union[k] += (in_truth | in_prediction).sum()
    with np.errstate(invalid="ignore"):
        values = intersection / union
    return values.tolist(), float(np.nanmean(values))


def random_pairs(seed, classes):
    """Three images, in which some classes are not there, and some neither there nor predicted."""
    rng = np.random.default_rng(seed)
    there = rng.choice(classes, max(1, classes // 2), replace=False)
    more = rng.choice(classes, 1)
    pairs = []
    for _ in range(3):
        truth = rng.choice(np.append(there, 255), (12, 9)).astype(np.uint8)
        guess = rng.choice(np.append(there, more), (12, 9))
        pairs.append((truth, np.where(rng.random((12, 9)) < 0.5, truth % 255 % classes, guess)))
    return pairs


@pytest.mark.parametrize("definition", [by_cityscapes, by_mmsegmentation])
def test_random_images_by_both_definitions(definition):
    left_out = predicted_only = 0
    for seed in range(60):
        classes = 2 + seed % 18
        pairs = random_pairs(seed, classes)
        matrix = matrix_of(pairs, classes)
        values, mean = definition(pairs, classes)
        assert matrix.iou() == pytest.approx(values, rel=1e-15, nan_ok=True)
        assert matrix.mean_iou() == pytest.approx(mean, rel=1e-14)
        left_out += np.isnan(matrix.iou()).any()
        predicted_only += bool((np.isnan(matrix.recall()) & (matrix.iou() == 0)).any())
    assert left_out > 10 and predicted_only > 10


def test_by_hand():
    """Class 0: 2 of 3; class 1: 1 of 3; class 2 predicted only: 0; class 3 nowhere."""
    truth = np.array([[0, 0, 1, 1, 255, 0]], np.uint8)
    predicted = np.array([[0, 0, 1, 0, 3, 2]])
    matrix = matrix_of([(truth, predicted)], 4)
    assert matrix.counts.dtype == np.int64
    assert matrix.counts.tolist() == [[2, 0, 1, 0], [1, 1, 0, 0], [0] * 4, [0] * 4]
    assert matrix.iou().tolist()[:3] == [0.5, 0.5, 0] and math.isnan(matrix.iou()[3])
    assert matrix.mean_iou() == pytest.approx(1 / 3)
    assert matrix.mean_recall() == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert matrix.pixel_accuracy() == pytest.approx(3 / 5)


def test_the_mean_is_over_the_data_set_not_over_images():
    first = np.zeros((1, 9), np.uint8), np.zeros((1, 9), np.int64)
    second = np.zeros((1, 1), np.uint8), np.ones((1, 1), np.int64)
    assert matrix_of([first, second], 2).iou().tolist() == [0.9, 0]


def test_counts_of_ranks_add_up():
    pairs = random_pairs(0, 5)
    whole, parts = matrix_of(pairs, 5), ConfusionMatrix(5)
    for pair in pairs:
        parts.counts += matrix_of([pair], 5).counts
    assert np.array_equal(parts.counts, whole.counts)


def test_pixels_that_are_not_counted_change_nothing():
    pairs = random_pairs(1, 5)
    matrix = matrix_of(pairs, 5)
    before = matrix.counts.copy()
    matrix.add(np.full((4, 4), 255, np.uint8), np.full((4, 4), 99))
    assert np.array_equal(matrix.counts, before)
    alone = matrix_of([(np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.int64))], 5)
    for score in (alone.mean_iou, alone.mean_recall, alone.pixel_accuracy):
        with pytest.raises(BadDataError, match="every pixel is ignored"):
            score()


@pytest.mark.parametrize(
    ("truth", "predicted", "error", "message"),
    [
        ([[3]], [[0]], BadDataError, "a.png: has label 3, but valid classes are 0 to 2"),
        ([[0]], [[3]], UsageError, "a.png: classes 3 to 3 are predicted, but there are 0 to 2"),
        ([[0]], [[-1]], UsageError, "classes -1 to -1 are predicted"),
        ([[0, 0]], [[0]], UsageError, r"labels of shape \(1, 2\), but predictions of \(1, 1\)"),
    ],
)
def test_what_cannot_be_counted_is_refused(truth, predicted, error, message):
    with pytest.raises(error, match=message):
        ConfusionMatrix(3).add(np.array(truth, np.uint8), np.array(predicted), "a.png")


def test_real_street_scenes(test_data):
    """CamVid predicted as itself, but one column to the left, by the definition in areas."""
    data = open_camvid(test_data("camvid"), "val")
    assert len(data) == 101
    pairs = []
    for i in range(0, 101, 10):
        labels = data.target(i).labels
        assert labels.shape == (360, 480) and set(np.unique(labels)) <= {*range(11), 255}
        pairs.append((labels, np.roll(np.where(labels == 255, 0, labels), 1, axis=1)))
    values, mean = by_mmsegmentation(pairs, 11)
    matrix = matrix_of(pairs, 11)
    assert matrix.iou() == pytest.approx(values, rel=1e-15, nan_ok=True)
    assert matrix.mean_iou() == pytest.approx(mean, rel=1e-14)
    assert 0.5 < mean < 1
