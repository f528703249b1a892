"""Crops that grow from epoch to epoch: early epochs, which learn coarse things, cost less.

As in the training of DAWNBench's fastest ImageNet entries and of FFCV's ResNets; the network is
convolutional up to its pooling, so it takes any side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fastrot.data.loader import Batch, Loader


def side_of(epoch: int, growth: Sequence[tuple[int, int]]) -> int:
    """Side of the crops of an epoch, in pixels.

    Args:
        epoch: from 0.
        growth: (first epoch, side) in increasing order of epochs, the first of which is 0.

    Example:
        >>> side_of(4, [(0, 128), (5, 224)]), side_of(5, [(0, 128), (5, 224)])
        (128, 224)
    """
    return next(side for first, side in reversed(growth) if epoch >= first)


class ProgressiveLoader:
    """A loader of one side after the other; each is built when its first epoch begins.

    Args:
        growth: as for ``side_of``.
        build: makes the loader of a side.

    Attributes:
        side: of the loader in use, in pixels.
        batch_size, num_samples, reads: as the ``Loader`` contract says.
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
        """Batches of a whole epoch."""
        return len(self._loader)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch, and the step within it, that the next iteration starts with."""
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
