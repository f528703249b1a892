"""A detection protocol: what its model is trained on, and what it finds in the test images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from fastrot.data.annotations.detection import DetectionDataset
from fastrot.data.sampling.philox import Stream, draw, uniform
from fastrot.distributed.world import World
from fastrot.errors import BadDataError
from fastrot.evaluation.dense.loader import DenseBatch, to_device
from fastrot.evaluation.dense.stages import ready_to_test
from fastrot.evaluation.detection.coco_ap import Kind, coco_average_precision
from fastrot.evaluation.detection.models import faster_rcnn_c4, mask_rcnn_fpn
from fastrot.evaluation.detection.predictions import Detections, encode_masks
from fastrot.evaluation.detection.settings import DetectionConfig
from fastrot.evaluation.detection.voc_ap import Definition, voc_average_precision
from fastrot.evaluation.result import Score
from fastrot.models.backbones import ResNet
from fastrot.system.console import Say
from fastrot.weights.load import Statistics

_SAY_SECONDS = 10.0
_IMAGES = 200  # of a rank, between two exchanges of what was found


def build(
    network: ResNet, classes: int, config: DetectionConfig, mean: Statistics, std: Statistics
) -> GeneralizedRCNN:
    """Build the detector of a protocol around a pretrained network."""
    if config.model == "faster_rcnn_c4":
        return faster_rcnn_c4(network, classes, settings=config, mean=mean, std=std)
    return mask_rcnn_fpn(network, classes, settings=config, mean=mean, std=std)


class DetectionImages:
    """Training images and what is to be found in them; see ``DenseSource``.

    Images without a trainable object are left out, as in mmdetection.

    Args:
        dataset: images with their objects.
        config: probability of a flip, and whether masks are wanted.
        seed: key of the flips.
    """

    def __init__(self, dataset: DetectionDataset, config: DetectionConfig, seed: int) -> None:
        self._dataset, self._config, self._seed = dataset, config, seed
        self._kept = dataset.trainable_images()

    def __len__(self) -> int:
        return len(self._kept)

    def load(self, epoch: int, sample: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return an image (3, H, W), uint8, and boxes, labels from 1 on, and masks.

        Raises:
            BadSampleError: the image cannot be read.
        """
        image = int(self._kept[sample])
        pixels = torch.from_numpy(self._dataset.decode(image)).permute(2, 0, 1)
        target = self._dataset.target(image).for_training()
        boxes = torch.from_numpy(target.boxes)
        found = {"boxes": boxes, "labels": torch.from_numpy(target.labels + 1)}
        if self._config.model == "mask_rcnn_fpn":
            found["masks"] = torch.from_numpy(target.masks())
        bits = draw(self._seed, epoch, np.array([image]), Stream.FLIP)[0]
        if float(uniform(bits)[0]) < self._config.flip:
            pixels = pixels.flip(-1)
            found["boxes"] = torch.stack(
                [target.width - boxes[:, 2], boxes[:, 1], target.width - boxes[:, 0], boxes[:, 3]],
                dim=1,
            )
            if "masks" in found:
                found["masks"] = found["masks"].flip(-1)
        return pixels.contiguous(), found


def losses(model: nn.Module, batch: DenseBatch) -> dict[str, torch.Tensor]:
    """Return the losses of proposals, classes, boxes and masks of a batch."""
    dtype = next(model.parameters()).dtype
    images = [image.to(dtype) / 255 for image in batch.images]
    targets = [{**each, "boxes": each["boxes"].to(dtype)} for each in batch.targets]
    found: dict[str, torch.Tensor] = model(images, targets)
    return found


@torch.no_grad()
def detect(
    model: GeneralizedRCNN, dataset: DetectionDataset, world: World, device: torch.device, say: Say
) -> list[Detections] | None:
    """Return what the model finds in each image; each rank looks at its share.

    Returns:
        One entry for each image, in their order; None on all ranks but the main one.

    Raises:
        BadSampleError: an image cannot be read.
    """
    ready_to_test(model)
    dtype = next(model.parameters()).dtype
    found: dict[int, Detections] = {}
    began = said = time.monotonic()
    steps = -(-len(dataset) // world.size)
    part: list[Any] = []
    for step in range(steps):
        sample = step * world.size + world.rank
        if sample < len(dataset):
            pixels = torch.from_numpy(dataset.decode(sample)).permute(2, 0, 1)
            image = to_device(pixels, device).to(dtype) / 255
            part.append([sample, *_plain(model([image])[0])])
        if len(part) >= _IMAGES or step + 1 == steps:
            for rank in world.gather_json(part):
                found |= {int(row[0]): _restored(*row[1:]) for row in rank}
            part = []
        if (now := time.monotonic()) - said > _SAY_SECONDS:
            said, left = now, (now - began) / (step + 1) * (steps - step - 1)
            say(f"test: {step + 1:,} of {steps:,} images, {left:,.0f} s left")
    return [found[sample] for sample in range(len(dataset))] if world.is_main else None


def _plain(found: dict[str, torch.Tensor]) -> tuple[Any, ...]:
    masks = None
    if "masks" in found:
        pixels = (found["masks"][:, 0] > 0.5).cpu().numpy()
        masks = [[rle["size"], rle["counts"].decode("ascii")] for rle in encode_masks(pixels)]
    boxes, scores = found["boxes"].double().tolist(), found["scores"].double().tolist()
    return boxes, scores, (found["labels"] - 1).tolist(), masks


def _restored(boxes: Any, scores: Any, labels: Any, masks: Any) -> Detections:
    rles = masks and [{"size": size, "counts": counts.encode("ascii")} for size, counts in masks]
    return Detections(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
        np.array(labels, np.int64),
        rles if masks else (None if masks is None else []),
    )


def scores(dataset: DetectionDataset, found: Sequence[Detections], data: str) -> list[Score]:
    """Return the scores of a protocol, in percent: VOC's AP50, or COCO's of boxes and masks."""
    values: list[Score] = []
    detail: dict[str, Any]
    if data != "coco":
        definitions: tuple[Definition, ...] = ("11point", "area")
        for definition in definitions:
            per_class = voc_average_precision(dataset, found, definition)
            detail = {"classes": _by_class(dataset, per_class)}
            name = "AP50" if definition == "11point" else "AP50 by area"
            values.append(
                Score(name, "AP50", _percent(float(np.nanmean(per_class))), detail=detail)
            )
        return values
    kinds: tuple[Kind, ...] = ("bbox", "segm") if dataset.has_masks() else ("bbox",)
    for kind in kinds:
        result = coco_average_precision(dataset, found, kind)
        official = {name: value for name, value in asdict(result).items() if name != "per_class"}
        detail = {k: None if np.isnan(x) else _percent(x) for k, x in official.items()}
        if np.isnan(result.ap):
            raise BadDataError(f"{dataset.path}: has no object to find; test on data with some")
        what = "box" if kind == "bbox" else "mask"
        values += [
            Score(f"{what} {name}", name, _percent(official[key]), detail=detail)
            for name, key in (("AP", "ap"), ("AP50", "ap50"), ("AP75", "ap75"))
        ]
    return values


def _by_class(dataset: DetectionDataset, values: np.ndarray) -> dict[str, float | None]:
    names = dataset.images.class_names
    return {
        name: None if np.isnan(value) else _percent(value)
        for name, value in zip(names, values.tolist(), strict=True)
    }


def _percent(value: float) -> float:
    return round(100 * float(value), 4)
