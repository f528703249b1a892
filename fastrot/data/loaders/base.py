"""The base class of all loaders: length, current epoch, and one iteration at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator

import torch

from fastrot.data.dataset import BadSampleError
from fastrot.data.loader import Batch, LoaderSpec
from fastrot.data.sampling.draw import BatchDraw, BatchDrawer
from fastrot.errors import UsageError


class BaseLoader(ABC):
    """The bookkeeping of the ``Loader`` contract; a subclass yields the batches of one epoch.

    Args:
        spec: everything that a loader needs.

    Attributes:
        reads: how the dataset is read and why, in one line; empty if there is no choice.
    """

    reads = ""

    def __init__(self, spec: LoaderSpec) -> None:
        self.spec = spec
        self.batch_size = spec.sampler.batch_size
        self.num_samples = len(spec.dataset)
        self._drawer = BatchDrawer(
            spec.dataset, spec.crop, spec.seed, spec.on_bad_sample, spec.views
        )
        self._epoch = 0
        self._start_step = 0
        self._closed = False
        self._current: Generator[Batch, None, None] | None = None
        self._reported: set[int] = set()

    def __len__(self) -> int:
        """Return the number of batches per epoch (steps x accumulation), equal on all ranks."""
        return self.spec.sampler.steps_per_epoch * self.spec.sampler.accumulation

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch of the next iteration, and the step within it to start at.

        A further iteration repeats the same epoch from its beginning.

        Raises:
            UsageError: the epoch is negative, or ``start_step`` is negative or beyond its end.
        """
        steps = self.spec.sampler.steps_per_epoch
        if epoch < 0 or not 0 <= start_step <= steps:
            raise UsageError(f"epoch {epoch}, start_step {start_step}: not in [0, {steps}]")
        self._epoch, self._start_step = epoch, start_step

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the chosen epoch in order; ends any earlier iteration.

        Raises:
            UsageError: the loader is closed.
            BadDataError: a .beton file or a tar shard has changed since it was opened.
        """
        if self._closed:
            raise UsageError("this loader is closed; build a new one")
        self._end_iteration()
        self.spec.dataset.check_unchanged()
        self._current = self._batches(self._epoch, self._start_step)
        self._start_step = 0
        return self._current

    def close(self) -> None:
        """Stop workers and free buffers; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._end_iteration()
            self._release()

    def _end_iteration(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.close()

    @abstractmethod
    def _batches(self, epoch: int, start_step: int) -> Generator[Batch, None, None]: ...

    @abstractmethod
    def _release(self) -> None: ...

    def _report(self, bad: Iterable[BadSampleError]) -> None:
        """Report each bad sample to the run, once in the lifetime of the loader."""
        for error in bad:
            if error.sample not in self._reported:
                self._reported.add(error.sample)
                if self.spec.on_bad is not None:
                    self.spec.on_bad(error)

    def _draws(self, epoch: int, start_step: int) -> Iterator[BatchDraw]:
        """Draw the batches of an epoch, one at a time."""
        for ids in self.spec.sampler.batches(epoch, start_step):
            yield self._drawer.draw(epoch, ids)

    def _batch(self, images: torch.Tensor, drawn: BatchDraw) -> Batch:
        """Make a complete batch of images on the device; pinned images are copied asynchronously.

        Bad samples are reported here, when the batch in which they were replaced is delivered.
        """
        device = self.spec.device
        self._report(drawn.bad)
        labels = torch.from_numpy(self.spec.dataset.labels[drawn.ids])
        return Batch(
            images=images.to(device, non_blocking=True),
            labels=labels.to(device, non_blocking=True),
            index=torch.from_numpy(drawn.ids.copy()),
            flips=torch.from_numpy(drawn.flips).to(device, non_blocking=True),
            turns=torch.from_numpy(drawn.turns).to(device, non_blocking=True),
        )
