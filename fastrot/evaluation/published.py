"""Published numbers of rotation prediction, each with its source, checkpoint and protocol.

MMSelfSup 0.x's model-zoo page mixes two checkpoints. The loader was fixed in v0.7.0 (pull request
#210: images had been fed as BGR), and the network was retrained, but only AvgPool was re-evaluated.
SVM, low-shot, Feature1 to 5, detection and segmentation belong to the older checkpoint.
Places205 and kNN were added with or after the newer one. OpenSelfSup's random initialisation is
drawn beside the low-shot curve.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

OLD = "rotation-pred_resnet50_8xb16-steplr-70e_in1k_20211213-513972ac.pth"
"""MMSelfSup v0.5 and v0.6: trained and measured on BGR images with RGB means."""

NEW = "rotation-pred_resnet50_8xb16-steplr-70e_in1k_20220225-5b9f06a0.pth"
"""MMSelfSup v0.7.0 and later 0.x: RGB."""

PAGE = "mmselfsup-0.x"
"""Source of the numbers that scores are compared with."""

RANDOM = "openselfsup-random"
"""Source of the random initialisation's numbers."""

_SHOTS = tuple(f"{k}-shot" for k in (1, 2, 4, 8, 16, 32, 64, 96))
_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class PublishedRow:
    """One published number.

    Attributes:
        protocol: name of the protocol, as in ``configs/eval``.
        name: as ``Score.name``; ``best layer`` if only the best of five is published.
        metric: ``mAP``, ``top1``, ``AP``, ``AP50``, ``AP75``, ``mIoU``.
        value: value in percent.
        source: PAGE or RANDOM.
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
    """Return the published numbers of a protocol, from both sources; there may be none."""
    return tuple(row for row in ROWS if row.protocol == protocol)


def lookup(protocol: str, name: str, metric: str) -> PublishedRow | None:
    """Return the number published for a score on the page of MMSelfSup 0.x, or None.

    A score that names its layer is compared with a row that was measured on that layer:
    ``layer3`` of voc07-svm with the best layer, ``4-shot layer3`` with ``4-shot``.

    Args:
        protocol: name of the protocol, as in ``configs/eval``.
        name: as ``Score.name`` or ``PublishedRow.name``.
        metric: see ``PublishedRow``.

    Example:
        >>> lookup("in1k-linear-avgpool", "pool", "top1").value
        48.12
    """
    for row in published(protocol):
        names = {row.name}
        if row.layer is not None:
            names.add(row.layer if row.name == "best layer" else f"{row.name} {row.layer}")
        if row.source == PAGE and row.metric == metric and name in names:
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
_HEADS = _Source(PAGE, OLD, _BGR)
_SVM = _Source(PAGE, OLD, f"best of five layers, feat4; {_BGR}", "layer3")
_LOW_SHOT = _Source(
    PAGE,
    OLD,
    "the layer is not stated beside this row; taken for feat4, the best one of the SVM's; " + _BGR,
    "layer3",
)
_TRANSFER = _Source(PAGE, OLD, f"{_BGR}; fine-tuned on RGB, so channels were probably swapped")
_FPN = _TRANSFER._replace(note=f"FPN, 1x; {_TRANSFER.note}")
_AGAIN = _Source(PAGE, NEW, "measured again after the loader was fixed")
_ADDED = _Source(PAGE, NEW, "row added with or after the newer checkpoint")
_AT_RANDOM = _Source(RANDOM, "none: Kaiming initialisation", "random initialisation")

# fmt: off
ROWS: tuple[PublishedRow, ...] = (
    *_table("voc07-svm", "mAP", _SVM, ["best layer"], [67.70]),
    *_table("voc07-lowshot", "mAP", _LOW_SHOT, _SHOTS,
            (20.60, 24.35, 31.41, 39.17, 46.56, 53.37, 59.14, 62.42)),
    *_table("voc07-lowshot", "mAP", _AT_RANDOM, _SHOTS,
            (9.15, 9.39, 11.09, 12.3, 14.3, 17.41, 21.32, 23.77)),
    *_table("in1k-linear-mhead", "top1", _HEADS, _STAGES, (12.15, 31.99, 44.57, 54.20, 45.94)),
    *_table("in1k-linear-avgpool", "top1", _AGAIN, ["pool"], [48.12]),
    *_table("places205-linear", "top1", _ADDED, _STAGES, (18.94, 34.72, 44.53, 46.30, 44.12)),
    *_table("in1k-knn", "top1", _ADDED, ("k=10", "k=20", "k=100", "k=200"),
            (11.0, 11.9, 12.6, 12.4)),
    *_table("voc0712-det", "AP50", _TRANSFER, ["AP50"], [79.67]),
    *_table("coco-det", "AP", _FPN, ("box AP", "mask AP"), (37.9, 34.2)),
    *_table("coco-det", "AP50", _FPN, ("box AP50", "mask AP50"), (56.5, 53.9)),
    *_table("coco-det", "AP75", _FPN, ("box AP75", "mask AP75"), (41.5, 36.7)),
    *_table("voc12aug-seg", "mIoU", _TRANSFER, ["mIoU"], [64.31]),
)
"""Every number of the page, protocol by protocol, and the random low-shot curve."""
