"""A segmentation protocol: what its model is trained on, and how it labels the test images."""

from __future__ import annotations

import time

import numpy as np
import torch

from fastrot.data.annotations.segmentation import SegmentationDataset
from fastrot.distributed.world import World
from fastrot.evaluation.dense.stages import ready_to_test
from fastrot.evaluation.result import Score
from fastrot.evaluation.segmentation.augment import Draws, augment
from fastrot.evaluation.segmentation.confusion import ConfusionMatrix
from fastrot.evaluation.segmentation.fcn import Fcn
from fastrot.evaluation.segmentation.predict import predict
from fastrot.evaluation.segmentation.settings import SegmentationConfig
from fastrot.system.console import Say
from fastrot.weights.load import Statistics

_SAY_SECONDS = 10.0


class SegmentationImages:
    """Training crops and the classes of their pixels; see ``DenseSource``.

    Args:
        dataset: images with their label maps.
        config: augmentation.
        mean: mean of each channel in [0, 1], which pixels beside an image have.
        seed: key of the augmentation.
    """

    def __init__(
        self, dataset: SegmentationDataset, config: SegmentationConfig, mean: Statistics, seed: int
    ) -> None:
        self._dataset, self._config, self._seed = dataset, config, seed
        self._fill = torch.tensor(mean).mul(255).round().byte()

    def __len__(self) -> int:
        return len(self._dataset)

    def load(self, epoch: int, sample: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a crop (3, S, S), uint8, and its classes (S, S), uint8.

        Raises:
            BadSampleError: the image cannot be read.
            BadDataError: its label map cannot be read.
        """
        image = torch.from_numpy(self._dataset.decode(sample)).permute(2, 0, 1)
        labels = torch.from_numpy(self._dataset.target(sample).labels)
        return augment(image, labels, self._config, Draws(self._seed, epoch, sample), self._fill)


def label(
    model: Fcn,
    dataset: SegmentationDataset,
    config: SegmentationConfig,
    mean: Statistics,
    std: Statistics,
    world: World,
    device: torch.device,
    say: Say,
) -> ConfusionMatrix:
    """Return the confusion matrix of all images; each rank looks at its share.

    Raises:
        BadSampleError: an image cannot be read.
        BadDataError: a label map cannot be read.
    """
    ready_to_test(model)
    matrix = ConfusionMatrix(dataset.num_classes)
    began = said = time.monotonic()
    mine = range(world.rank, len(dataset), world.size)
    for done, sample in enumerate(mine, 1):
        image = torch.from_numpy(dataset.decode(sample)).permute(2, 0, 1).to(device)
        classes = predict(model, image, config, mean, std).cpu().numpy()
        matrix.add(dataset.target(sample).labels, classes, dataset.name(sample))
        if (now := time.monotonic()) - said > _SAY_SECONDS:
            said, left = now, (now - began) / done * (len(mine) - done)
            say(f"test: {done:,} of {len(mine):,} images, {left:,.0f} s left")
    counts = world.sum(torch.from_numpy(matrix.counts).to(device))
    matrix.counts = counts.cpu().numpy()
    return matrix


def scores(dataset: SegmentationDataset, matrix: ConfusionMatrix) -> list[Score]:
    """Return mean intersection over union, mean and pixel accuracy, in percent."""
    names = dataset.images.class_names
    by_class = {
        name: None if np.isnan(value) else round(100 * value, 4)
        for name, value in zip(names, matrix.iou().tolist(), strict=True)
    }
    return [
        Score("mIoU", "mIoU", 100 * matrix.mean_iou(), detail={"classes": by_class}),
        Score("mean accuracy", "mAcc", 100 * matrix.mean_recall()),
        Score("pixel accuracy", "aAcc", 100 * matrix.pixel_accuracy()),
    ]
