"""Published numbers of rotation prediction, each with its source, checkpoint and protocol.

The page of MMSelfSup 0.x mixes two checkpoints. The loader was fixed in v0.7.0 (pull request
#210: images had been fed as BGR), and the network was trained again; but only AvgPool was measured
again. SVM, low-shot, Feature1 to 5, detection and segmentation belong to the older checkpoint.
Places205 and kNN were added with or after the newer one. OpenSelfSup (the same recipe, images as
RGB) is a replicate: its numbers show by how much two trainings and pipelines differ.

A value without a checkpoint was measured on weights that were not published by that name. Numbers
known only from memory are excluded, except in RotNet's tables, where the note says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

OLD = "rotation-pred_resnet50_8xb16-steplr-70e_in1k_20211213-513972ac.pth"
"""MMSelfSup v0.5 and v0.6: trained and measured on BGR images with RGB means."""

NEW = "rotation-pred_resnet50_8xb16-steplr-70e_in1k_20220225-5b9f06a0.pth"
"""MMSelfSup v0.7.0 and later 0.x: RGB."""

NEWEST = "rotation-pred_resnet50_8xb16-steplr-70e_in1k_20220825-a8bf5f69.pth"
"""MMSelfSup 1.x."""

DEFAULT_SOURCE = "mmselfsup-0.x"

_SHOTS = tuple(f"{k}-shot" for k in (1, 2, 4, 8, 16, 32, 64, 96))
_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")

PAGE_ORDER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("voc07-svm", ("best layer",)),
    ("voc07-lowshot", _SHOTS),
    ("in1k-linear-mhead", _STAGES),
    ("in1k-linear-avgpool", ("pool",)),
    ("places205-linear", _STAGES),
    ("inat18-linear", _STAGES),
    ("in1k-knn", ("k=10", "k=20", "k=100", "k=200")),
    ("voc0712-det", ("AP50",)),
    ("coco-det", ("box AP", "box AP50", "box AP75", "mask AP", "mask AP50", "mask AP75")),
    ("voc12aug-seg", ("mIoU",)),
    ("cityscapes-seg", ("mIoU",)),
)
"""Protocols in the order of the published page, with their rows. No number for rotation prediction
is published for inat18-linear and cityscapes-seg."""


@dataclass(frozen=True)
class PublishedRow:
    """One published number.

    Attributes:
        protocol: name of the protocol, as in ``configs/eval``.
        name: as ``Score.name``; ``best layer`` if only the best of five is published.
        metric: ``mAP``, ``top1``, ``top5``, ``AP``, ``AP50``, ``AP75``, ``mIoU``.
        value: value in percent.
        source: publication, e.g. ``mmselfsup-0.x``.
        checkpoint: file that was measured, or what is known about the weights.
        note: what to know before comparing; may be empty.
        layer: stage that was measured; None: not stated, or none.
    """

    protocol: str
    name: str
    metric: str
    value: float
    source: str
    checkpoint: str
    note: str = ""
    layer: str | None = None


def published(protocol: str) -> tuple[PublishedRow, ...]:
    """Return all published numbers of a protocol, from every source; there may be none."""
    return tuple(row for row in ROWS if row.protocol == protocol)


def lookup(
    protocol: str, name: str, metric: str, source: str = DEFAULT_SOURCE
) -> PublishedRow | None:
    """Return the number published for a score, or None.

    A score that names its layer is compared with a row that was measured on that layer:
    ``layer3`` of voc07-svm with the best layer, ``4-shot layer3`` with ``4-shot``.

    Args:
        protocol: name of the protocol, as in ``configs/eval``.
        name: as ``Score.name`` or ``PublishedRow.name``.
        metric: see ``PublishedRow``.
        source: see ``PublishedRow``.

    Example:
        >>> lookup("in1k-linear-avgpool", "pool", "top1").value
        48.12
    """
    for row in published(protocol):
        names = {row.name}
        if row.layer is not None:
            names.add(row.layer if row.name == "best layer" else f"{row.name} {row.layer}")
        if row.source == source and row.metric == metric and name in names:
            return row
    return None


class _Source(NamedTuple):
    """The origin of a table."""

    name: str
    checkpoint: str
    note: str = ""
    layer: str | None = None


def _table(
    protocol: str, metric: str, source: _Source, names: Iterable[str], values: Iterable[float]
) -> list[PublishedRow]:
    """Return one row per value; a row named after a stage has that stage as its layer."""
    return [
        PublishedRow(
            protocol,
            name,
            metric,
            value,
            source.name,
            source.checkpoint,
            source.note,
            name if name in (*_STAGES, "pool") else source.layer,
        )
        for name, value in zip(names, values, strict=True)
    ]


_BGR = "older checkpoint (BGR images), not measured again after the loader was fixed"
_PAGE = _Source("mmselfsup-0.x", OLD, _BGR)
_PAGE_SVM = _Source("mmselfsup-0.x", OLD, f"best of five layers, feat4; {_BGR}", "layer3")
_LOW_SHOT = "the layer is not stated beside this row; taken for feat4, the best one of the SVM's"
_PAGE_LOW_SHOT = _Source("mmselfsup-0.x", OLD, f"{_LOW_SHOT}; {_BGR}", "layer3")
_PAGE_TRANSFER = _Source(
    "mmselfsup-0.x", OLD, f"{_BGR}; fine-tuned on RGB, so channels were probably swapped"
)
_PAGE_NEW = _Source("mmselfsup-0.x", NEW, "row added with or after the newer checkpoint")
_REPLICATE = _Source("openselfsup", "OpenSelfSup's own, 70 epochs", "same recipe, RGB")
_REPLICATE_SVM = _Source(*_REPLICATE[:2], "same recipe, RGB; best of five layers, feat4", "layer3")
_REPLICATE_LOW_SHOT = _Source(*_REPLICATE[:2], f"same recipe, RGB; {_LOW_SHOT}", "layer3")
_RANDOM = _Source("openselfsup-random", "none: Kaiming initialisation", "random initialisation")
_RANDOM_SVM = _Source(*_RANDOM[:2], "random initialisation; best of five layers, feat2", "layer1")
_SUPERVISED = _Source("openselfsup-supervised", "torchvision's resnet50", "supervised on ImageNet")
_BEST = ("best layer",)
_AVGPOOL = ("in1k-linear-avgpool", "top1")
_SEMI = ("1%", "10%")
_AT_BEST_RATE = _Source(*_REPLICATE[:2], "fine-tuned; lr 0.01, head 100 times as much")

_VISSL = _Source(
    "vissl",
    "VISSL's RotNet ResNet-50, 105 epochs, one rotation per image",
    "VISSL's own linear protocol, 28 epochs; the layer is not stated",
)
_VISSL_22K = _Source("vissl-in22k", "VISSL's RotNet ResNet-50, ImageNet-22k", _VISSL.note)
_VISSL_ALEXNET = _Source("vissl-alexnet", "RotNet's official AlexNet", _VISSL.note)

_COCO = ("box AP", "box AP50", "box AP75", "mask AP", "mask AP50", "mask AP75")


def _detection(
    protocol: str, source: _Source, names: Iterable[str], values: Iterable[float]
) -> list[PublishedRow]:
    """Return rows whose metric is the last word of their name."""
    rows: list[PublishedRow] = []
    for name, value in zip(names, values, strict=True):
        rows += _table(protocol, name.split()[-1], source, [name], [value])
    return rows


def _rotnet(note: str = "", source: str = "rotnet-paper") -> _Source:
    return _Source(source, "RotNet's Network in Network on CIFAR-10", note)


_MEMORY = "unverified: from memory, and doubted"
_BLOCKS = "non-linear head on frozen features"
_SHOTS_OF_CIFAR = tuple(f"{k}-shot" for k in (20, 100, 400, 1000, 5000))
_SURVEY = "100 minus the error of the AET/AVT survey's table; the paper has only a plot"


def _cifar() -> list[PublishedRow]:
    """Return RotNet's tables on CIFAR-10: by depth and block, rotations, classifier and labels."""
    rows: list[PublishedRow] = []
    for blocks, values, note in (
        (3, (85.45, 88.26, 62.09), "another copy of the table has 88.56 for conv2"),
        (4, (85.07, 89.06, 86.21, 61.73), ""),
        (5, (85.04, 89.76, 86.82, 74.50, 50.37), _MEMORY),
    ):
        names = [f"{blocks} blocks conv{i}" for i in range(1, blocks + 1)]
        about = _rotnet("; ".join(filter(None, (_BLOCKS, note))))
        rows += _table("cifar10-rotnet", "top1", about, names, values)
    rows += _table(
        "cifar10-rotnet",
        "top1",
        _rotnet(f"{_BLOCKS}; 4 blocks, conv2"),
        ("4 rotations", "8 rotations", "rotations 0 180", "rotations 90 270"),
        (89.06, 88.51, 87.46, 85.52),
    )
    for name, value, note in (
        ("supervised", 92.80, "Network in Network with all labels"),
        ("random + conv", 72.50, "random initialisation"),
        ("RotNet + non-linear", 89.06, "best test epoch"),
        ("RotNet + conv", 91.16, "best test epoch"),
        ("RotNet + non-linear, fine-tuned", 91.73, _MEMORY),
        ("RotNet + conv, fine-tuned", 92.17, "best test epoch"),
    ):
        rows += _table("cifar10-rotnet", "top1", _rotnet(note), [name], [value])
    for what, values in (
        ("RotNet + conv", (64.63, 75.28, 82.84, 86.43, 91.95)),
        ("supervised conv", (33.66, 47.26, 74.19, 83.47, 93.07)),
        ("supervised non-linear", (34.97, 48.87, 72.83, 83.87, 92.08)),
    ):
        about = _rotnet(_SURVEY, "aet-survey")
        names = [f"{what}, {shots}" for shots in _SHOTS_OF_CIFAR]
        rows += _table("cifar10-rotnet", "top1", about, names, values)
    again = _rotnet(f"{_BLOCKS}; public code run again, issue 6", "rotnet-rerun")
    names = [f"4 blocks conv{i}" for i in range(1, 5)]
    rows += _table("cifar10-rotnet", "top1", again, names, (84.65, 88.89, 85.88, 54.04))
    rows += _table("cifar10-rotnet", "top1", again, ["rotation"], [93.65])
    return rows


# fmt: off
ROWS: tuple[PublishedRow, ...] = (
    *_table("voc07-svm", "mAP", _PAGE_SVM, _BEST, [67.70]),
    *_table("voc07-svm", "mAP", _REPLICATE_SVM, _BEST, [67.38]),
    *_table("voc07-svm", "mAP", _RANDOM_SVM, _BEST, [30.54]),
    *_table("voc07-svm", "mAP", _SUPERVISED, _BEST, [87.17]),
    *_table("voc07-lowshot", "mAP", _PAGE_LOW_SHOT, _SHOTS,
            (20.60, 24.35, 31.41, 39.17, 46.56, 53.37, 59.14, 62.42)),
    *_table("voc07-lowshot", "mAP", _REPLICATE_LOW_SHOT, _SHOTS,
            (18.91, 23.33, 30.57, 38.22, 45.83, 52.23, 58.08, 61.11)),
    *_table("voc07-lowshot", "mAP", _RANDOM, _SHOTS,
            (9.15, 9.39, 11.09, 12.3, 14.3, 17.41, 21.32, 23.77)),
    *_table("voc07-lowshot", "mAP", _SUPERVISED, _SHOTS,
            (52.99, 63.55, 73.7, 78.79, 81.76, 83.75, 85.18, 85.97)),
    *_table("in1k-linear-mhead", "top1", _PAGE, _STAGES, (12.15, 31.99, 44.57, 54.20, 45.94)),
    *_table("in1k-linear-mhead", "top1", _REPLICATE, _STAGES,
            (12.89, 34.30, 44.91, 54.99, 49.09)),
    *_table("in1k-linear-mhead", "top1", _RANDOM, _STAGES, (11.37, 16.21, 13.47, 9.07, 6.54)),
    *_table("in1k-linear-mhead", "top1", _SUPERVISED, _STAGES,
            (15.18, 33.96, 47.86, 67.56, 76.17)),
    *_table(*_AVGPOOL, _Source("mmselfsup-0.x", NEW, "measured again after the loader was fixed"),
            ["pool"], [48.12]),
    *_table(*_AVGPOOL, _Source("mmselfsup-0.6", OLD, "before the loader was fixed (BGR images)"),
            ["pool"], [44.35]),
    *_table(*_AVGPOOL, _Source("mmselfsup-1.x", NEWEST, "trained again; its other rows are 0.x's"),
            ["pool"], [47.0]),
    *_table(*_AVGPOOL, _REPLICATE, ["pool"], [47.01]),
    *_table(*_AVGPOOL, _RANDOM, ["pool"], [4.35]),
    *_table(*_AVGPOOL, _SUPERVISED, ["pool"], [74.12]),
    *_table("in1k-linear-vissl", "top1", _VISSL, _BEST, [48.2]),
    *_table("in1k-linear-vissl", "top1", _VISSL_22K, _BEST, [54.89]),
    *_table("in1k-linear-vissl", "top1", _VISSL_ALEXNET, _BEST, [39.51]),
    *_table("places205-linear", "top1", _PAGE_NEW, _STAGES, (18.94, 34.72, 44.53, 46.30, 44.12)),
    *_table("places205-linear", "top1", _REPLICATE, _STAGES, (18.65, 35.71, 42.28, 45.98, 43.72)),
    *_table("places205-linear", "top1", _RANDOM, _STAGES, (17.19, 21.70, 19.23, 14.59, 11.73)),
    *_table("places205-linear", "top1", _SUPERVISED, _STAGES,
            (21.27, 36.10, 43.03, 51.38, 53.05)),
    *_table("in1k-knn", "top1", _PAGE_NEW, ("k=10", "k=20", "k=100", "k=200"),
            (11.0, 11.9, 12.6, 12.4)),
    *_table("in1k-semisup", "top1", _AT_BEST_RATE, _SEMI, (18.98, 54.75)),
    *_table("in1k-semisup", "top5", _AT_BEST_RATE, _SEMI, (44.05, 80.21)),
    *_table("in1k-semisup", "top1", _RANDOM, _SEMI, (1.56, 21.78)),
    *_detection("voc0712-det", _PAGE_TRANSFER, ["AP50"], [79.67]),
    *_detection("voc0712-det", _Source(*_REPLICATE[:2], "detectron2, not mmdetection"),
                ("AP50", "AP", "AP75"), (80.91, 55.52, 61.39)),
    *_detection("voc0712-det", _RANDOM, ("AP50", "AP", "AP75"), (59.02, 32.83, 31.60)),
    *_detection("voc0712-det", _SUPERVISED, ("AP50", "AP", "AP75"), (81.58, 54.19, 59.80)),
    *_detection("coco-det", _Source(*_PAGE_TRANSFER[:2], f"FPN, 1x; {_PAGE_TRANSFER.note}"), _COCO,
                (37.9, 56.5, 41.5, 34.2, 53.9, 36.7)),
    *_detection("coco-det", _Source(*_REPLICATE[:2], "C4, 2x: not comparable with FPN, 1x"), _COCO,
                (40.0, 59.3, 43.6, 34.9, 56.0, 37.4)),
    *_table("voc12aug-seg", "mIoU", _PAGE_TRANSFER, ["mIoU"], [64.31]),
    *_cifar(),
)
"""Every published number, protocol by protocol."""
