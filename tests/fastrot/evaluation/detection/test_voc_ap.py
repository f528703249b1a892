"""VOC's average precision against cases worked out by hand, and a plain reading of its rules."""

from __future__ import annotations

import numpy as np
import pytest

from fastrot.data.annotations.voc_detection import open_voc_detection
from fastrot.data.sources.voc import CLASSES
from fastrot.errors import BadDataError, UsageError
from fastrot.evaluation.detection.predictions import Detections
from fastrot.evaluation.detection.voc_ap import voc_average_precision
from fastrot.evaluation.metrics import average_precision
from tests.fastrot.data.annotations.annotated_files import voc_object, write_voc

CAR = CLASSES.index("car")


def opened(root, *images):
    """A dataset of images, each with objects as (class, x1, y1, x2, y2, difficult)."""
    named = {
        f"{i:06}": [voc_object(c, *box, difficult=difficult) for c, *box, difficult in things]
        for i, things in enumerate(images)
    }
    return open_voc_detection(write_voc(root, 2007, "test", named), [(2007, "test")], partial=True)


def found(*rows, label=CAR):
    """Detections as (score, x1, y1, x2, y2), in VOC's coordinates."""
    table = np.array(rows, np.float64).reshape(-1, 5)
    boxes = table[:, 1:] - [1, 1, 0, 0]
    return Detections(boxes, table[:, 0], np.full(len(table), label))


def score(data, *detections, definition="area", **options):
    return float(voc_average_precision(data, detections, definition, **options)[CAR])


A, B, C = (1, 1, 10, 10), (15, 1, 24, 10), (1, 15, 10, 24)
ELSEWHERE = (30, 20, 39, 29)


@pytest.fixture
def three(tmp_path):
    """Two cars in the first image, one in the second, and a dog."""
    return opened(
        tmp_path,
        [("car", *A, 0), ("car", *B, 0), ("dog", *C, 0)],
        [("car", *C, 0)],
    )


def test_right_wrong_right(three):
    """Precisions 1, 1/2, 2/3 at recalls 1/3, 1/3, 2/3."""
    first = found((0.9, *A), (0.7, *B), (0.8, *ELSEWHERE))
    area = (1 + 2 / 3) / 3
    eleven = (4 * 1 + 3 * 2 / 3) / 11  # recalls 0 to 0.3; 0.4 to 0.6; the others are not reached
    assert score(three, first, found()) == pytest.approx(area, rel=1e-15)
    assert score(three, first, found(), definition="11point") == pytest.approx(eleven, rel=1e-15)


def test_wrong_first_right_afterwards(three):
    """Precisions 0, 1/2, 2/3, 3/4: each is raised to the last one."""
    first, second = found((0.9, *ELSEWHERE), (0.8, *A), (0.7, *B)), found((0.6, *C))
    for definition in ("area", "11point"):
        assert score(three, first, second, definition=definition) == pytest.approx(0.75)


def test_an_object_is_found_once(three):
    """The second detection of the same object is wrong: precisions 1, 1/2, 2/3."""
    first = found((0.9, *A), (0.8, *A), (0.7, *B))
    assert score(three, first, found()) == pytest.approx((1 + 2 / 3) / 3)


def test_a_taken_object_is_not_replaced_by_the_next_best(tmp_path):
    """Unlike in COCO: both detections overlap the first car most, so the second one is wrong."""
    data = opened(tmp_path, [("car", 1, 1, 10, 10, 0), ("car", 1, 3, 10, 12, 0)])
    detections = found((0.9, 1, 1, 10, 10), (0.8, 1, 1, 10, 11))
    assert score(data, detections) == 0.5
    detections = found((0.9, 1, 1, 10, 10), (0.8, 1, 3, 10, 12))
    assert score(data, detections) == 1


def test_difficult_objects_are_neither_right_nor_wrong(tmp_path):
    data = opened(tmp_path, [("car", *A, 1), ("car", *B, 0)], [("car", *C, 1)])
    first = found((0.9, *A), (0.8, *A), (0.7, *B))
    assert score(data, first, found((0.95, *C))) == 1
    assert score(data, first, found((0.95, *ELSEWHERE))) == 0.5


def test_pixels_are_counted_as_in_the_development_kit(tmp_path):
    """10 x 10 and 10 x 5 pixels: an intersection over union of exactly 0.5, which is enough."""
    data = opened(tmp_path, [("car", 1, 1, 10, 10, 0)])
    assert score(data, found((0.9, 1, 1, 10, 5))) == 1
    assert score(data, found((0.9, 1, 1, 10, 4))) == 0
    assert score(data, found((0.9, 1, 1, 10, 5)), overlap=0.51) == 0


def test_three_of_ten_objects_reach_a_recall_of_three_tenths(tmp_path):
    """In float64 0.1 * 3 is more than 3 / 10."""
    boxes = [(1 + 4 * i, 1, 3 + 4 * i, 3) for i in range(10)]
    data = opened(tmp_path, [("car", *box, 0) for box in boxes])
    for count in range(11):
        detections = found(*((1 - i / 100, *box) for i, box in enumerate(boxes[:count])))
        expected = (count + 1) / 11 if count else 0
        assert score(data, detections, definition="11point") == pytest.approx(expected, rel=1e-15)
        assert score(data, detections) == pytest.approx(count / 10, rel=1e-15)


def test_other_classes_and_images_do_not_matter(three):
    dog = Detections(np.array([[0.0, 14, 10, 24]]), np.array([1.0]), np.array([11]))
    values = voc_average_precision(three, [dog, found()], "area")
    assert values.shape == (20,) and values.dtype == np.float64
    assert values[CAR] == 0 and values[11] == 1
    assert np.isnan(np.delete(values, [CAR, 11])).all(), "classes without objects"
    assert score(three, found((0.9, *C)), found((0.8, *A))) == 0, "objects of the other image"


def test_of_equal_scores_the_earlier_image_ranks_first(three):
    wrong, right = found((0.5, *ELSEWHERE)), found((0.5, *C))
    assert score(three, wrong, right) == pytest.approx(1 / 2 / 3)
    assert score(three, found((0.5, *A)), found((0.5, *ELSEWHERE))) == pytest.approx(1 / 3)
    assert score(three, found((0.5, *ELSEWHERE), (0.5, *A)), found()) == pytest.approx(1 / 2 / 3)


def test_nothing_is_found(three):
    for definition in ("area", "11point"):
        assert score(three, found(), found(), definition=definition) == 0


def test_what_cannot_be_scored_is_refused(three):
    with pytest.raises(
        UsageError, match="unknown average precision '12point'; choose 11point, area"
    ):
        score(three, found(), found(), definition="12point")
    with pytest.raises(BadDataError, match="NaN or infinite"):
        score(three, found((np.nan, *A)), found())
    with pytest.raises(UsageError, match="detections in 1 images, but the dataset has 2"):
        score(three, found())


def plain(data, detections, label, definition):
    """The rules of the development kit, one detection after another."""
    ranked = [
        (-float(s), i, j)
        for i, each in enumerate(detections)
        for j, (s, k) in enumerate(zip(each.scores, each.labels, strict=True))
        if k == label
    ]
    wanted, taken, results = 0, set(), []
    for i in range(len(data)):
        target = data.target(i)
        wanted += int(((target.labels == label) & ~target.difficult).sum())
    for _, i, j in sorted(ranked):
        target, best, most = data.target(i), None, -1.0
        x1, y1, x2, y2 = detections[i].boxes[j].astype(float)
        for row in np.flatnonzero(target.labels == label):
            a1, b1, a2, b2 = target.boxes[row].astype(float)
            shared = max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
            union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - shared
            if shared / union > most:
                best, most = row, shared / union
        if most >= 0.5 and target.difficult[best]:
            continue
        right = most >= 0.5 and (i, best) not in taken
        if right:
            taken.add((i, best))
        results.append(right)
    recalls = [sum(results[: n + 1]) / wanted for n in range(len(results))]
    precisions = [sum(results[: n + 1]) / (n + 1) for n in range(len(results))]
    if definition == "11point":
        points = [t / 10 for t in range(11)]
        best = [[p for p, r in zip(precisions, recalls, strict=True) if r >= t] for t in points]
        return sum(max(each, default=0) for each in best) / 11
    area, before = 0.0, 0.0
    for n, recall in enumerate(recalls):
        area, before = area + (recall - before) * max(precisions[n:]), recall
    return area


@pytest.mark.parametrize("definition", ["area", "11point"])
def test_real_annotations_by_the_plain_rules(test_data, definition):
    data = open_voc_detection(
        test_data("voc-mini"), [(2007, "test")], partial=True, follow_symlinks=True
    ).select(range(0, 115, 3))
    rng = np.random.default_rng(0)
    detections = []
    for i in range(len(data)):
        target = data.target(i)
        rows = rng.permutation(np.repeat(np.arange(len(target)), rng.integers(0, 3, len(target))))
        sides = target.boxes[rows, 2:] - target.boxes[rows, :2]
        moves = np.tile(sides, 2) * rng.normal(0, 0.12, (len(rows), 4))
        scores = np.round(rng.random(len(rows)), 1).astype(np.float32)
        boxes = np.round(target.boxes[rows] + moves)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        detections.append(Detections(boxes, scores, target.labels[rows]))
    values = voc_average_precision(data, detections, definition)
    compared = np.flatnonzero(~np.isnan(values))
    assert len(compared) > 15
    for label in compared:
        expected = plain(data, detections, label, definition)
        assert values[label] == pytest.approx(expected, rel=1e-12), CLASSES[label]
    assert 0.2 < np.nanmean(values) < 0.9


def test_where_all_objects_are_found_it_is_the_area_of_the_other_protocols(three):
    """One definition of area in both: as for labels, where each positive has a score."""
    first = found((0.9, *A), (0.7, *B), (0.8, *ELSEWHERE))
    labels, scores = np.array([True, True, False, True]), np.array([0.9, 0.7, 0.8, 0.6])
    expected = average_precision(labels, scores, "voc2010")
    assert score(three, first, found((0.6, *C))) == pytest.approx(float(expected[0]), rel=1e-15)
