"""Batches for a detector: whole photos with boxes, labels and masks, the short side resized.

All competitors read the same images of one split in COCO's layout, flip half of them, and deliver
what a detector computes with: one padded batch (N, 3, H, W), float32, normalised, with boxes and
masks resized along. torchvision's two follow its reference training: Pillow decodes, transforms v2
and pycocotools do the rest in one worker process per core. There the resize is the detector's own
work, as it is with ours; ``torchvision-resized`` leaves it to the worker processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from fastrot.benchmarks.compare.stream import Delivery, Stream
from fastrot.data.annotations.coco_instances import open_coco
from fastrot.data.sampling.sampler import Sampler
from fastrot.evaluation.dense.loader import DenseLoader
from fastrot.evaluation.detection.evaluate import DetectionImages
from fastrot.evaluation.detection.models import ResizedImages
from fastrot.evaluation.detection.settings import DetectionConfig

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_SEED = 0
_PREFETCH = 2  # batches that each worker process prepares ahead: the default

Target = dict[str, torch.Tensor]
Loaded = tuple[torch.Tensor, Target]


@dataclass(frozen=True)
class DetectionJob:
    """One job for all competitors."""

    data: str  # folder in COCO's layout
    split: str = "train"
    kind: str = "fastrot"  # ``fastrot``, ``torchvision`` or ``torchvision-resized``
    side: int = 800  # of the short side, in pixels
    longest_side: int = 1333  # at most, in pixels
    batch: int = 2  # N
    workers: int = 1  # number of threads or processes


def open_stream(job: Mapping[str, Any]) -> Stream:
    """Return a stream of batches of the competitor ``job["kind"]``."""
    asked = DetectionJob(**job)
    deliveries = (Delivery(len(images)) for images, _ in detector_batches(asked))
    if asked.kind == "fastrot":
        return Stream(deliveries, ahead=2 + asked.workers)
    ahead = (_PREFETCH + 1) * asked.workers
    return Stream(deliveries, ahead, asked.workers, {"prefetch_factor": _PREFETCH})


def detector_batches(job: DetectionJob) -> Iterator[tuple[torch.Tensor, Sequence[Target]]]:
    """Yield padded batches (N, 3, H, W), float32, with a target for each image, endlessly."""
    kind = ResizedImages if job.kind == "fastrot" else GeneralizedRCNNTransform
    transform = kind(job.side, job.longest_side, _MEAN, _STD)
    for loaded in _ours(job) if job.kind == "fastrot" else _torchvisions(job):
        images, targets = zip(*loaded, strict=True)
        if job.kind == "torchvision-resized":
            yield transform.batch_images(list(images)), targets
        else:
            batch, resized = transform(list(images), list(targets))
            yield batch.tensors, resized


def _ours(job: DetectionJob) -> Iterator[list[Loaded]]:
    """Yield the batches of our training, epoch after epoch."""
    dataset = open_coco(job.data, job.split, partial=True)
    source = DetectionImages(dataset, DetectionConfig(model="mask_rcnn_fpn"), _SEED)
    order = Sampler(len(source), job.batch, seed=_SEED)
    loader = DenseLoader(source, order, workers=job.workers, device=torch.device("cpu"))
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        for batch in loader:
            images = [image.float() / 255 for image in batch.images]
            yield list(zip(images, batch.targets, strict=True))


def _torchvisions(job: DetectionJob) -> DataLoader[Loaded]:
    ours = open_coco(job.data, job.split, partial=True)
    names = {Path(ours.name(sample)).name for sample in ours.trainable_images().tolist()}
    lists = ours.images.listed_in
    found = CocoDetection(str(ours.images.root), str(lists), transforms=_transforms(job))
    found.ids = [i for i in found.ids if found.coco.imgs[i]["file_name"] in names]
    dataset = wrap_dataset_for_transforms_v2(found, target_keys=("boxes", "labels", "masks"))
    return DataLoader(
        dataset,
        batch_sampler=_Endless(dataset, job.batch),
        num_workers=job.workers,
        prefetch_factor=_PREFETCH,
        collate_fn=list,
    )


def _transforms(job: DetectionJob) -> v2.Compose:
    resize = [v2.RandomShortestSize(job.side, job.longest_side)]
    normalise = [v2.Normalize(_MEAN, _STD)]
    resized = job.kind == "torchvision-resized"
    return v2.Compose(
        [
            *(resize if resized else []),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            *(normalise if resized else []),
            v2.ConvertBoundingBoxFormat("XYXY"),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )


class _Endless:
    """Endless shuffled batches, so that the time between epochs does not count."""

    def __init__(self, dataset: Dataset[Loaded], batch: int) -> None:
        self._order = Sampler(len(dataset), batch, seed=_SEED)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        for epoch in itertools.count():
            for ids in self._order.batches(epoch):
                yield ids.tolist()
