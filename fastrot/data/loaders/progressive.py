"""Progressive resizing: crops grow from epoch to epoch, so early epochs cost less.

DAWNBench's fastest ImageNet entries and FFCV's ResNets are trained this way. The network is
convolutional up to its pooling, so it accepts any crop size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fastrot.data.loader import Batch, Loader


def side_of(epoch: int, growth: Sequence[tuple[int, int]]) -> int:
    """Return the side of the crops in an epoch, in pixels.

    Args:
        epoch: epoch number, from 0.
        growth: pairs (first epoch, side), in increasing order of epochs from epoch 0.

    Example:
        >>> side_of(4, [(0, 128), (5, 224)]), side_of(5, [(0, 128), (5, 224)])
        (128, 224)
    """
    return next(side for first, side in reversed(growth) if epoch >= first)


class ProgressiveLoader:
    """A sequence of loaders with one crop size each, built when their first epoch begins.

    Args:
        growth: as in ``side_of``.
        build: builds the loader for a side.

    Attributes:
        side: side of the current loader's crops, in pixels.
        batch_size, num_samples, reads: see the ``Loader`` contract.
    """

    def __init__(self, growth: Sequence[tuple[int, int]], build: Callable[[int], Loader]) -> None:
        self._growth = list(growth)
        self._build = build
        self.side = side_of(0, growth)
        self._loader = build(self.side)
        self.batch_size = self._loader.batch_size
        self.num_samples = self._loader.num_samples
        self.reads = self._loader.reads

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self._loader)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch of the next iteration, and the step within it to start at."""
        side = side_of(epoch, self._growth)
        if side != self.side:
            self._loader.close()
            self._loader = self._build(side)
            self.side = side
        self._loader.set_epoch(epoch, start_step)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the chosen epoch."""
        return iter(self._loader)

    def close(self) -> None:
        """Stop workers and free buffers; safe to call twice."""
        self._loader.close()
