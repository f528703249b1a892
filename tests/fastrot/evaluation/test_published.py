from __future__ import annotations

from collections import Counter

import pytest

from fastrot.evaluation.protocol import load_protocol, protocol_names
from fastrot.evaluation.published import NEW, OLD, PAGE, RANDOM, ROWS, lookup, published
from fastrot.evaluation.suite import PROTOCOLS

FEATURES = ("stem", "layer1", "layer2", "layer3", "layer4")
SHOTS = [f"{k}-shot" for k in (1, 2, 4, 8, 16, 32, 64, 96)]


# Typed from the page a second time, in its own order.
@pytest.mark.parametrize(
    ("protocol", "metric", "names", "values"),
    [
        ("voc07-svm", "mAP", ["best layer"], "67.70"),
        ("voc07-lowshot", "mAP", SHOTS, "20.60 24.35 31.41 39.17 46.56 53.37 59.14 62.42"),
        ("in1k-linear-mhead", "top1", FEATURES, "12.15 31.99 44.57 54.20 45.94"),
        ("in1k-linear-avgpool", "top1", ["pool"], "48.12"),
        ("places205-linear", "top1", FEATURES, "18.94 34.72 44.53 46.30 44.12"),
        ("in1k-knn", "top1", ["k=10", "k=20", "k=100", "k=200"], "11.0 11.9 12.6 12.4"),
        ("voc0712-det", "AP50", ["AP50"], "79.67"),
        ("coco-det", "AP", ["box AP", "mask AP"], "37.9 34.2"),
        ("coco-det", "AP50", ["box AP50", "mask AP50"], "56.5 53.9"),
        ("coco-det", "AP75", ["box AP75", "mask AP75"], "41.5 36.7"),
        ("voc12aug-seg", "mIoU", ["mIoU"], "64.31"),
    ],
)
def test_the_published_page(protocol, metric, names, values):
    found = [lookup(protocol, name, metric) for name in names]
    assert [row.value for row in found] == [float(value) for value in values.split()]
    assert {row.source for row in found} == {"mmselfsup-0.x"}


def test_the_random_low_shot_curve_stands_beside_the_page():
    found = [row for row in published("voc07-lowshot") if row.source == RANDOM]
    assert [row.name for row in found] == SHOTS
    assert [row.value for row in found] == [9.15, 9.39, 11.09, 12.3, 14.3, 17.41, 21.32, 23.77]
    assert {row.source for row in ROWS} == {PAGE, RANDOM}


def test_each_row_of_the_page_is_of_its_checkpoint():
    page = [row for row in ROWS if row.source == PAGE]
    of = {
        checkpoint: {row.protocol for row in page if row.checkpoint == checkpoint}
        for checkpoint in (OLD, NEW)
    }
    assert of[NEW] == {"in1k-linear-avgpool", "places205-linear", "in1k-knn"}
    assert of[OLD] == {
        "voc07-svm",
        "voc07-lowshot",
        "in1k-linear-mhead",
        "voc0712-det",
        "coco-det",
        "voc12aug-seg",
    }
    assert all("BGR" in row.note for row in page if row.checkpoint == OLD)
    assert OLD.endswith("513972ac.pth") and NEW.endswith("5b9f06a0.pth")


def test_a_score_with_its_layer_finds_the_row_of_that_layer():
    assert lookup("voc07-svm", "layer3", "mAP").value == 67.70
    assert lookup("voc07-svm", "layer4", "mAP") is None
    assert lookup("voc07-svm", "best layer", "mAP").layer == "layer3"
    assert lookup("voc07-lowshot", "4-shot layer3", "mAP").value == 31.41
    assert lookup("voc07-lowshot", "4-shot layer4", "mAP") is None
    assert lookup("voc07-lowshot", "layer3", "mAP") is None, "which number of shots?"
    assert lookup("in1k-linear-mhead", "layer3", "top1").layer == "layer3"
    for arguments in (
        ("knn", "k=10", "top1"),
        ("in1k-knn", "k=10", "top5"),
        ("in1k-knn", "k=5", "top1"),
    ):
        assert lookup(*arguments) is None
    assert published("inat18-linear") == published("knn") == ()


def test_the_suite_runs_the_protocols_in_the_order_of_the_page():
    page = list(dict.fromkeys(row.protocol for row in ROWS))
    suite = [name for name in PROTOCOLS if name in page]
    assert suite == page, "detection and segmentation come last"
    assert set(protocol_names()) == set(PROTOCOLS)
    for name in PROTOCOLS:
        assert load_protocol(name).protocol == name and load_protocol(name).data == PROTOCOLS[name]


def test_no_number_is_there_twice_and_all_are_percentages():
    keys = Counter((row.protocol, row.name, row.metric, row.source) for row in ROWS)
    assert [key for key, count in keys.items() if count > 1] == []
    assert all(0 < row.value < 100 and row.source and row.checkpoint for row in ROWS)
