"""The ranks of a run: which one this process is, and the few collectives that it needs.

Several GPUs of one node: ``fastrot train --gpus 8 ...``, or torchrun, which other launchers know:
``torchrun --standalone --nproc-per-node 8 -m fastrot train ...``.

Tensors on a GPU travel by NCCL, those on the host by gloo, so that what ranks agree upon between
two steps waits for no device.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore, Store

from fastrot.distributed.rank_environment import STORE
from fastrot.distributed.rank_monitor import RankMonitor, lost_ranks_named
from fastrot.errors import MismatchError, RankLostError

DEADLINE_SECONDS = 120.0
"""Longest wait for another rank, where the configuration names none."""

JOIN_SECONDS = 60.0
"""Longest wait for all ranks to appear; torch itself takes seconds to load."""


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

    def any(self, mine: bool) -> bool:
        """Whether it is so on one of the ranks, which all call this."""
        return bool(self.max(torch.tensor(float(mine))))

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The values of every rank, of shape (size, *values.shape); all must have that shape."""
        if self.size == 1:
            return values[None]
        every = values.new_empty(self.size * values.numel())  # gloo wants it flat
        with lost_ranks_named(self.rank, self.size):
            dist.all_gather_into_tensor(every, values.flatten())
        return every.view(self.size, *values.shape)

    def gather_json(self, value: Any) -> list[Any]:
        """The plain values of every rank, in the order of the ranks."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.gather(torch.tensor([len(text)])).flatten().tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(text)] = text
        texts = self.gather(padded)
        return [
            json.loads(bytes(row[:length].tolist()))
            for row, length in zip(texts, lengths, strict=True)
        ]

    def copy_from_main(self, values: torch.Tensor) -> torch.Tensor:
        """The main rank's values, in place."""
        if self.size > 1:
            with lost_ranks_named(self.rank, self.size):
                dist.broadcast(values, 0)
        return values

    def _reduce(self, values: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
        if self.size > 1:
            with lost_ranks_named(self.rank, self.size):
                dist.all_reduce(values, operation)
        return values


def read_world() -> World:
    """The world that torchrun, or our own launcher, describes in the environment; else one rank."""
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
            f"({torch.cuda.device_count()} here); start fewer ranks"
        )
    device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    return device


@contextmanager
def joined(
    world: World, device: torch.device, *, deadline: float = DEADLINE_SECONDS
) -> Iterator[RankMonitor]:
    """Join the process group for the duration of the block.

    Nothing to do for one rank, or inside of a block that has joined already. A failure of this
    rank is reported to the others; one of theirs is raised here, with its name and exit code.

    Args:
        world: the ranks.
        device: of this rank.
        deadline: longest wait for another rank, in seconds; at least a minute, until
            ``shorten_waits``.

    Raises:
        RankLostError: ranks are missing, died, or did not answer in time.
    """
    if world.size == 1 or dist.is_initialized():
        yield RankMonitor(world.rank, world.size)
        return
    if world.local_size == world.size:  # one machine: nothing listens to any other
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, "lo")
    # torchrun keeps its store when it starts all ranks anew; earlier failures are not theirs.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    monitor = RankMonitor(world.rank, world.size, PrefixStore(f"start-{start}", _store(world)))
    monitor.rendezvous(JOIN_SECONDS)
    patience = timedelta(seconds=max(deadline, JOIN_SECONDS))
    monitor.store.set_timeout(patience)  # NCCL uses it again, at the first collective
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with monitor.watching(), monitor.explained():
        dist.init_process_group(
            backend,
            store=PrefixStore("group", monitor.store),
            rank=world.rank,
            world_size=world.size,
            timeout=patience,
        )
        try:
            yield monitor
        except BaseException as error:
            if not isinstance(error, RankLostError) or device.type == "cpu":
                # NCCL would wait for those who are gone.
                with suppress(RuntimeError):
                    dist.destroy_process_group()
            raise
        monitor.report_done()
        dist.destroy_process_group()


def shorten_waits(world: World, seconds: float) -> None:
    """From now on no wait for another rank is longer; before, they read files and compile."""
    if world.size > 1:
        if hasattr(dist, "set_timeout"):  # torch 2.15
            dist.set_timeout(timedelta(seconds=seconds))
        else:
            distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))


def _store(world: World) -> Store:
    """Where the ranks find each other: a file on one machine, else what torchrun keeps."""
    wait = timedelta(seconds=JOIN_SECONDS)
    named = os.environ.get(STORE)
    if named:
        if not Path(named).parent.is_dir():
            raise MismatchError(f"{STORE}={named}: its folder does not exist")
        store: Store = dist.FileStore(named, world.size)  # type: ignore[attr-defined]
        store.set_timeout(wait)
        return store
    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    try:
        rendezvous: Any = dist.rendezvous  # type: ignore[attr-defined]
        store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=wait))
    except (RuntimeError, ValueError) as error:  # ValueError: a variable is missing
        line = str(error).strip().splitlines()[0]
        raise RankLostError(
            f"rank {world.rank}: no rendezvous of {world.size} ranks at {where} ({line}); check "
            "that MASTER_ADDR is the first machine's address, and MASTER_PORT free and open there"
        ) from error
    return store
