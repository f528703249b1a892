"""The ranks of a run: who we are, and the few things that ranks say to each other.

Several GPUs of one node: ``torchrun --standalone --nproc-per-node 8 -m fastrot train ...``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from fastrot.errors import MismatchError, PeerLostError

COLLECTIVE_DEADLINE = timedelta(seconds=120)


@dataclass(frozen=True)
class World:
    """Ranks of the run.

    Attributes:
        rank: this process among all, in [0, size).
        size: number of processes.
        local_rank: this process on its machine: the index of its GPU.
        local_size: processes on this machine, which share its cores.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and talks to the user."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Maximum over the ranks, in place."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
        if self.size > 1:
            try:
                dist.all_reduce(values, operation)
            except RuntimeError as error:
                raise PeerLostError(f"rank {self.rank}: another rank is gone: {error}") from error
        return values


def read_world() -> World:
    """The world that torchrun describes in the environment; one rank without it."""
    if "RANK" not in os.environ:
        return World()
    return World(
        rank=int(os.environ["RANK"]),
        size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


def pick_device(name: str, world: World) -> torch.device:
    """The device of this rank.

    Raises:
        MismatchError: a GPU is asked for and there is none for this rank.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise MismatchError(
            "train.device='cuda' and torch sees no GPU here; "
            "use --set train.device=cpu, or see `fastrot doctor`"
        )
    if world.local_rank >= torch.cuda.device_count():
        raise MismatchError(
            f"local rank {world.local_rank} has no GPU of its own "
            f"({torch.cuda.device_count()} here); lower --nproc-per-node"
        )
    device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    return device


@contextmanager
def joined(world: World, device: torch.device) -> Iterator[None]:
    """Join the process group for the duration of the block.

    Nothing to do for one rank, or inside of a block that has joined already.
    """
    if world.size == 1 or dist.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=COLLECTIVE_DEADLINE)
    try:
        yield
    finally:
        dist.destroy_process_group()
