"""The random parts of a batch: crop boxes, flips, turns, and replacements of bad samples.

All are drawn here, once, as pure functions of (seed, epoch, sample id), so every loader, rank and
worker gets the same. A loader fills in the pixels and draws nothing.

Importing this module imports no torch. Shapes: N images of a batch, V views per image (4, or 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastrot.data.dataset import BadSampleError, Dataset
from fastrot.data.sampling.crops import Boxes, Crop, replacement
from fastrot.data.sampling.philox import Stream, draw

Views = Literal["all", "one"]

_TURNS = 4
_BLOCK = 2**14  # rows at a time, so that drawing a whole epoch works within the processor's cache
_MAX_ATTEMPTS = 100


@dataclass
class BatchDraw:
    """One batch as drawn. ``BatchDrawer.replace`` puts another sample into a row.

    Attributes:
        epoch: index of the epoch.
        ordered: sample ids from the sampler, of shape (N,), int64.
        ids: sample ids as delivered, with bad samples replaced, of shape (N,), int64.
        sizes: widths and heights of the images in pixels, of shape (N, 2), int32.
        boxes: crop boxes, of shape (N, 4), int32: left, top, width, height.
        flips: whether to mirror each image left to right, of shape (N,), bool.
        turns: quarter turns of each view, of shape (N, V), uint8.
        attempts: how often each row was replaced, of shape (N,), int64.
        bad: the error of each replaced sample, in the order of discovery.
    """

    epoch: int
    ordered: NDArray[np.int64]
    ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    boxes: Boxes
    flips: NDArray[np.bool_]
    turns: NDArray[np.uint8]
    attempts: NDArray[np.int64]
    bad: list[BadSampleError] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def split(self, lengths: Sequence[int]) -> list[BatchDraw]:
        """Split into batches of these lengths, which share memory with this one.

        ``bad`` goes to the first of them.
        """
        parts: list[BatchDraw] = []
        for start, stop in pairwise(accumulate(lengths, initial=0)):
            rows = slice(start, stop)
            parts.append(
                BatchDraw(
                    epoch=self.epoch,
                    ordered=self.ordered[rows],
                    ids=self.ids[rows],
                    sizes=self.sizes[rows],
                    boxes=self.boxes[rows],
                    flips=self.flips[rows],
                    turns=self.turns[rows],
                    attempts=self.attempts[rows],
                    bad=[] if parts else self.bad,
                )
            )
        return parts


@dataclass(frozen=True)
class BatchDrawer:
    """Draws the batches of a dataset; picklable, so that worker processes can draw them.

    Attributes:
        dataset: the dataset of the images.
        crop: how a crop is drawn.
        seed: key of crops, flips, turns and replacements.
        on_bad_sample: ``fail`` raises the error of a bad sample; ``skip`` uses
            ``replacement(seed, id, attempt, n)`` instead.
        views: as for ``draw_turns``.
    """

    dataset: Dataset
    crop: Crop
    seed: int
    on_bad_sample: Literal["fail", "skip"] = "fail"
    views: Views = "all"

    def draw(
        self, epoch: int, ids: NDArray[np.int64], *, sizes: NDArray[np.int32] | None = None
    ) -> BatchDraw:
        """Draw a batch; samples whose headers cannot be read are replaced.

        Args:
            epoch: index of the epoch.
            ids: sample ids from the sampler, of shape (N,).
            sizes: widths and heights, of shape (N, 2); None: taken from the dataset, which reads
                the headers if images are separate files.

        Raises:
            BadSampleError: a header cannot be read, and bad samples are fatal.
        """
        count, views = len(ids), _TURNS if self.views == "all" else 1
        drawn = BatchDraw(
            epoch=epoch,
            ordered=np.array(ids, np.int64),
            ids=np.array(ids, np.int64),
            sizes=np.zeros((count, 2), np.int32),
            boxes=np.zeros((count, 4), np.int32),
            flips=np.zeros(count, np.bool_),
            turns=np.zeros((count, views), np.uint8),
            attempts=np.zeros(count, np.int64),
        )
        self._fill(drawn, slice(0, count), sizes)
        return drawn

    def replace(self, drawn: BatchDraw, row: int, error: BadSampleError) -> None:
        """Put the next replacement, with its box, flip and turns, into a row of a batch.

        Raises:
            BadSampleError: ``error``, or the error of a replacement, if bad samples are fatal or
                replacements run out.
        """
        self._substitute(drawn, row, error)
        self._fill(drawn, slice(row, row + 1), None)

    def _substitute(self, drawn: BatchDraw, row: int, error: BadSampleError) -> None:
        attempt = int(drawn.attempts[row])
        if self.on_bad_sample == "fail" or attempt >= _MAX_ATTEMPTS:
            error.replacements, error.can_be_skipped = attempt, True
            raise error
        drawn.bad.append(error)
        drawn.attempts[row] += 1
        # A pure function of the id from the sampler, so the replacement is the same everywhere.
        sample = int(drawn.ordered[row])
        drawn.ids[row] = replacement(self.seed, sample, attempt, len(self.dataset))

    def _fill(self, drawn: BatchDraw, rows: slice, sizes: NDArray[np.int32] | None) -> None:
        """Fill in sizes, boxes, flips and turns for the ids in these rows."""
        drawn.sizes[rows] = self._measure(drawn, rows) if sizes is None else sizes
        seed, epoch = self.seed, drawn.epoch
        for start in range(rows.start, rows.stop, _BLOCK):
            block = slice(start, min(start + _BLOCK, rows.stop))
            ids, widths, heights = drawn.ids[block], drawn.sizes[block, 0], drawn.sizes[block, 1]
            drawn.boxes[block] = self.crop.boxes(seed, epoch, ids, widths, heights)
            drawn.flips[block] = self.crop.flips(seed, epoch, ids)
            drawn.turns[block] = draw_turns(self.views, seed, epoch, ids)

    def _measure(self, drawn: BatchDraw, rows: slice) -> NDArray[np.int32]:
        ids = drawn.ids[rows]  # a view, so replacements show up in it
        while True:
            try:
                return self.dataset.sizes(ids)
            except BadSampleError as error:
                bad = np.flatnonzero(ids == error.sample)
                if not len(bad):
                    raise
                for row in bad.tolist():
                    self._substitute(drawn, rows.start + row, error)


def draw_turns(views: Views, seed: int, epoch: int, ids: ArrayLike) -> NDArray[np.uint8]:
    """Return the quarter turns of every view, of shape (N, V), uint8.

    Args:
        views: ``all``: 0, 1, 2, 3 for every image. ``one``: one random turn per image, after
            crop and flip (VISSL turns the image before them, so its crops differ).
        seed: seed of the run.
        epoch: index of the epoch.
        ids: sample ids of shape (N,).
    """
    ids = np.asarray(ids)
    if views == "all":
        return np.tile(np.arange(_TURNS, dtype=np.uint8), (len(ids), 1))
    bits, _, _, _ = draw(seed, epoch, ids, Stream.TURN)
    return (bits >> np.uint32(30)).astype(np.uint8)[:, None]
