"""The contract of a loader: from samples on disk to uint8 batches on the device.

Every loader takes the same order (``data/order.py``) and the same crop boxes
(``data/augment.py``), so any two give the same images within a stated tolerance. One
parametrised contract test (tests/fastrot/data/test_loader.py) runs over all of them.

Shapes: N source images of this rank in a batch, S side of a crop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from fastrot.data.augment import Crop
from fastrot.data.order import SampleOrder
from fastrot.data.samples import BadSampleError, Samples

READ_DEADLINE_SECONDS = 300.0


@dataclass(frozen=True)
class Batch:
    """One batch on the device; it stays valid after the next one is drawn.

    Attributes:
        images: of shape (N, S, S, 3), uint8, RGB, not yet flipped.
        labels: of shape (N,), int64, -1 where there is none.
        index: of shape (N,), int64, position in the data set.
        flips: of shape (N,), bool: mirror this image left to right (``rotate_views`` does it).
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    flips: torch.Tensor


@dataclass(frozen=True)
class LoaderSpec:
    """Everything a loader needs.

    Attributes:
        samples: the data set.
        order: which ids make up which batch, for this rank.
        crop: how a crop is drawn.
        seed: key of crops, flips and replacements.
        device: where batches go.
        workers: decoding processes or threads.
        on_bad_sample: ``fail`` raises BadSampleError; ``skip`` puts
            ``augment.replacement(seed, id, attempt, n)`` in its place and calls ``on_bad``.
        on_bad: called in the main process once for every bad sample that was replaced.
    """

    samples: Samples
    order: SampleOrder
    crop: Crop
    seed: int
    device: torch.device
    workers: int
    on_bad_sample: Literal["fail", "skip"] = "fail"
    on_bad: Callable[[BadSampleError], None] | None = None


class Loader(Protocol):
    """Iterate over the batches of one epoch.

    Attributes:
        batch_size: source images of this rank in a full batch.
        num_samples: n, samples in the data set.
    """

    batch_size: int
    num_samples: int

    def __len__(self) -> int:
        """Batches of a whole epoch (steps x accumulation), equal on all ranks."""
        ...

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch, and the step within it, that the next iteration starts with."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the chosen epoch, from ``start_step`` on, in order.

        An exception in a worker is raised here at the next ``next()``; no wait is longer than
        READ_DEADLINE_SECONDS.
        """
        ...

    def close(self) -> None:
        """Stop workers and free buffers; safe to call twice."""
        ...
