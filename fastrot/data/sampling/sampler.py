"""The samples of each step as a pure function of (seed, epoch, world, step).

Nothing here has state, so resuming takes one integer, and the number of ranks or workers cannot
change what an epoch contains: step g of epoch e is always the same global set of sample ids.

Shapes: n samples, B global batch, W ranks, A accumulation steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastrot.data.sampling.block_shuffle import WINDOW, Blocks, stable_argsort
from fastrot.data.sampling.philox import Stream, philox_u64
from fastrot.errors import UsageError

OrderMode = Literal["random", "sequential", "block"]


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the ids sorted by a random 64-bit key each.

    Not ``Generator.permutation``: numpy may change its stream between versions, and a resumed
    run must continue in the order it began with.
    """
    keys = philox_u64(seed, epoch, np.arange(n, dtype=np.uint64), Stream.ORDER)
    permutation = stable_argsort(keys)
    permutation.flags.writeable = False
    return permutation


@dataclass(frozen=True)
class Sampler:
    """The sample ids of every step of every epoch, for one rank.

    Training (``drop_last=True``): every step has exactly ``global_batch`` samples and the last
    short batch of an epoch is dropped. Evaluation (``drop_last=False``): every sample appears
    exactly once, the last step may be short, and a rank's share of it may be empty.

    Args:
        num_samples: n, the number of samples in the dataset.
        global_batch: B, source images per step over all ranks, before rotation.
        seed: 64-bit key of the permutation.
        mode: ``random`` draws a new permutation each epoch, ``sequential`` keeps file order,
            ``block`` draws one that reads neighbours together (``block_shuffle.py``).
        drop_last: drop the last short batch (training) or keep it (evaluation).
        rank: this rank, in [0, world).
        world: W, number of ranks.
        accumulation: A, micro-batches per step: a rank's share is cut into A equal batches.
        block: samples per block (mode ``block``), from ``block_length``.
        window: number of blocks that are shuffled together (mode ``block``).

    Raises:
        UsageError: B is not divisible by W * A in training, or an epoch would have no steps.

    Example:
        >>> sampler = Sampler(10, 4, seed=0, mode="sequential", world=2, rank=1)
        >>> sampler.steps_per_epoch, sampler.rank_ids(0, 1).tolist()
        (2, [6, 7])
    """

    num_samples: int
    global_batch: int
    seed: int = 0
    mode: OrderMode = "random"
    drop_last: bool = True
    rank: int = 0
    world: int = 1
    accumulation: int = 1
    block: int = 64
    window: int = WINDOW

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UsageError(f"num_samples={self.num_samples}: the dataset is empty")
        if self.global_batch < 1 or self.accumulation < 1:
            raise UsageError(
                f"global_batch={self.global_batch}, accumulation={self.accumulation}: "
                "both must be at least 1"
            )
        if self.block < 1 or self.window < 1:
            raise UsageError(f"block={self.block}, window={self.window}: both must be at least 1")
        if not 0 <= self.rank < self.world:
            raise UsageError(f"rank={self.rank} is not in [0, {self.world})")
        if self.drop_last and self.global_batch % (self.world * self.accumulation):
            raise UsageError(
                f"global_batch={self.global_batch} must be a multiple of ranks x accumulation = "
                f"{self.world} x {self.accumulation}; set train.global_batch to one"
            )
        if self.drop_last and self.num_samples < self.global_batch:
            whole = self.world * self.accumulation
            fits = max(whole, self.num_samples // whole * whole)
            raise UsageError(
                f"global_batch={self.global_batch} is larger than the dataset "
                f"({self.num_samples} samples): no full step; lower it, e.g. with "
                f"--set train.global_batch={fits}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps per epoch, equal on all ranks."""
        if self.drop_last:
            return self.num_samples // self.global_batch
        return -(-self.num_samples // self.global_batch)

    @property
    def batch_size(self) -> int:
        """Return the source images per batch of this rank (of its largest one in evaluation)."""
        return -(-self.global_batch // (self.world * self.accumulation))

    def global_ids(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Return the sample ids of one step over all ranks: (B,), fewer in a short last step."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} is not in [0, {self.steps_per_epoch})")
        start = step * self.global_batch
        stop = min(start + self.global_batch, self.num_samples)
        if self.mode == "sequential":
            return np.arange(start, stop, dtype=np.int64)
        if self.mode == "block":
            blocks = Blocks(self.num_samples, self.block, self.window, self.seed)
            return blocks.ids(epoch, start, stop)
        return _permutation(self.num_samples, self.seed, epoch)[start:stop]

    def rank_ids(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Return this rank's contiguous share of ``global_ids``; sizes differ by at most one."""
        return np.array_split(self.global_ids(epoch, step), self.world)[self.rank]

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[NDArray[np.int64]]:
        """Yield this rank's ids batch by batch, ``accumulation`` batches per step."""
        for step in range(start_step, self.steps_per_epoch):
            yield from np.array_split(self.rank_ids(epoch, step), self.accumulation)
