from __future__ import annotations

from collections import Counter

import pytest

from fastrot.evaluation.protocol import load_protocol, protocol_names
from fastrot.evaluation.published import NEW, OLD, PAGE_ORDER, ROWS, lookup, published

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


@pytest.mark.parametrize(
    ("protocol", "source", "values"),
    [
        ("voc07-svm", "openselfsup", "67.38"),
        ("voc07-svm", "openselfsup-random", "30.54"),
        ("voc07-svm", "openselfsup-supervised", "87.17"),
        ("voc07-lowshot", "openselfsup", "18.91 23.33 30.57 38.22 45.83 52.23 58.08 61.11"),
        ("voc07-lowshot", "openselfsup-random", "9.15 9.39 11.09 12.3 14.3 17.41 21.32 23.77"),
        (
            "voc07-lowshot",
            "openselfsup-supervised",
            "52.99 63.55 73.7 78.79 81.76 83.75 85.18 85.97",
        ),
        ("in1k-linear-mhead", "openselfsup", "12.89 34.30 44.91 54.99 49.09"),
        ("in1k-linear-mhead", "openselfsup-random", "11.37 16.21 13.47 9.07 6.54"),
        ("in1k-linear-mhead", "openselfsup-supervised", "15.18 33.96 47.86 67.56 76.17"),
        ("in1k-linear-avgpool", "openselfsup", "47.01"),
        ("in1k-linear-avgpool", "openselfsup-random", "4.35"),
        ("in1k-linear-avgpool", "openselfsup-supervised", "74.12"),
        ("in1k-linear-avgpool", "mmselfsup-0.6", "44.35"),
        ("in1k-linear-avgpool", "mmselfsup-1.x", "47.0"),
        ("in1k-linear-vissl", "vissl", "48.2"),
        ("in1k-linear-vissl", "vissl-in22k", "54.89"),
        ("in1k-linear-vissl", "vissl-alexnet", "39.51"),
        ("places205-linear", "openselfsup", "18.65 35.71 42.28 45.98 43.72"),
        ("places205-linear", "openselfsup-random", "17.19 21.70 19.23 14.59 11.73"),
        ("places205-linear", "openselfsup-supervised", "21.27 36.10 43.03 51.38 53.05"),
        ("in1k-semisup", "openselfsup", "18.98 54.75 44.05 80.21"),
        ("in1k-semisup", "openselfsup-random", "1.56 21.78"),
        ("voc0712-det", "openselfsup", "80.91 55.52 61.39"),
        ("voc0712-det", "openselfsup-random", "59.02 32.83 31.60"),
        ("voc0712-det", "openselfsup-supervised", "81.58 54.19 59.80"),
        ("coco-det", "openselfsup", "40.0 59.3 43.6 34.9 56.0 37.4"),
        ("cifar10-rotnet", "rotnet-rerun", "84.65 88.89 85.88 54.04 93.65"),
    ],
)
def test_replicates_and_anchors(protocol, source, values):
    found = [row.value for row in published(protocol) if row.source == source]
    assert found == [float(value) for value in values.split()]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("4 blocks conv2", 89.06),
        ("4 blocks conv4", 61.73),
        ("3 blocks conv2", 88.26),
        ("8 rotations", 88.51),
        ("rotations 90 270", 85.52),
        ("supervised", 92.80),
        ("random + conv", 72.50),
        ("RotNet + conv", 91.16),
        ("RotNet + non-linear", 89.06),
        ("RotNet + conv, fine-tuned", 92.17),
    ],
)
def test_rotnets_tables(name, value):
    assert lookup("cifar10-rotnet", name, "top1", "rotnet-paper").value == value


def test_low_shot_errors_of_the_survey_became_accuracies():
    errors = {
        "RotNet + conv": (35.37, 24.72, 17.16, 13.57, 8.05),
        "supervised conv": (66.34, 52.74, 25.81, 16.53, 6.93),
        "supervised non-linear": (65.03, 51.13, 27.17, 16.13, 7.92),
    }
    for what, row in errors.items():
        for shots, error in zip((20, 100, 400, 1000, 5000), row, strict=True):
            found = lookup("cifar10-rotnet", f"{what}, {shots}-shot", "top1", "aet-survey")
            assert found.value == pytest.approx(100 - error)


def test_what_is_from_memory_says_so():
    doubtful = [row.name for row in ROWS if "unverified" in row.note]
    assert doubtful == [f"5 blocks conv{i}" for i in range(1, 6)] + [
        "RotNet + non-linear, fine-tuned"
    ]


def test_each_row_of_the_page_is_of_its_checkpoint():
    page = [row for row in ROWS if row.source == "mmselfsup-0.x"]
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
    assert lookup("voc07-svm", "layer1", "mAP", "openselfsup-random").value == 30.54
    assert lookup("voc07-svm", "best layer", "mAP", "openselfsup-supervised").layer is None
    assert lookup("voc07-lowshot", "4-shot layer3", "mAP").value == 31.41
    assert lookup("voc07-lowshot", "4-shot layer4", "mAP") is None
    assert lookup("voc07-lowshot", "layer3", "mAP") is None, "which number of shots?"
    assert lookup("in1k-linear-mhead", "layer3", "top1").layer == "layer3"
    for arguments in (
        ("knn", "k=10", "top1"),
        ("in1k-knn", "k=10", "top5"),
        ("in1k-knn", "k=5", "top1"),
        ("in1k-knn", "k=10", "top1", "nobody"),
    ):
        assert lookup(*arguments) is None
    assert published("inat18-linear") == published("knn") == ()


def test_the_order_is_the_pages_and_has_all_its_rows():
    order = [protocol for protocol, _ in PAGE_ORDER]
    assert order == [
        *("voc07-svm", "voc07-lowshot", "in1k-linear-mhead", "in1k-linear-avgpool"),
        *("places205-linear", "inat18-linear", "in1k-knn", "voc0712-det", "coco-det"),
        *("voc12aug-seg", "cityscapes-seg"),
    ]
    found = [(row.protocol, row.name) for row in ROWS if row.source == "mmselfsup-0.x"]
    listed = [(protocol, name) for protocol, names in PAGE_ORDER for name in names]
    assert found == [pair for pair in listed if pair[0] not in ("inat18-linear", "cityscapes-seg")]


def test_shipped_protocols_are_those_of_the_page_or_have_no_numbers():
    order = {protocol for protocol, _ in PAGE_ORDER}
    for name in protocol_names():
        protocol = load_protocol(name).protocol
        assert protocol in order or published(protocol) == ()


def test_no_number_is_there_twice_and_all_are_percentages():
    keys = Counter((row.protocol, row.name, row.metric, row.source) for row in ROWS)
    assert [key for key, count in keys.items() if count > 1] == []
    assert all(0 < row.value < 100 and row.source and row.checkpoint for row in ROWS)
