"""The ranks of a run: which one this process is, and the few collectives that it needs.

For several GPUs of one node, use ``fastrot train --gpus 8 ...``, or torchrun:
``torchrun --standalone --nproc-per-node 8 -m fastrot train ...``.

Tensors on a GPU are sent by NCCL, those on the host by gloo, so that decisions between two steps
wait for no device.
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
"""Longest wait for another rank, unless the configuration says otherwise."""

JOIN_SECONDS = 60.0
"""Longest wait for all ranks to appear; loading torch alone takes seconds."""


@dataclass(frozen=True)
class World:
    """This process among the ranks of the run.

    Attributes:
        rank: index of this process, in [0, size).
        size: number of processes.
        local_rank: index of this process on its machine, and of its GPU.
        local_size: number of processes on this machine, which share its cores.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Return whether this rank writes files and prints for the user."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Take the maximum over the ranks, in place."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def any(self, mine: bool) -> bool:
        """Return whether ``mine`` is true on any rank; all ranks call this."""
        return bool(self.max(torch.tensor(float(mine))))

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all ranks, (size, *values.shape); shapes must agree."""
        if self.size == 1:
            return values[None]
        every = values.new_empty(self.size * values.numel())  # gloo needs a flat tensor
        with lost_ranks_named(self.rank, self.size):
            dist.all_gather_into_tensor(every, values.flatten())
        return every.view(self.size, *values.shape)

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all ranks in the order of the ranks; their numbers may differ."""
        if self.size == 1:
            return rows
        counts = self.gather(torch.tensor([len(rows)])).flatten().tolist()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = zip(self.gather(padded), counts, strict=True)
        return torch.cat([part[:count] for part, count in parts])

    def gather_json(self, value: Any) -> list[Any]:
        """Return the plain values of all ranks, in the order of the ranks."""
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
        """Replace the values by those of the main rank, in place."""
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
    """Return the world that the environment describes (torchrun or fastrot), else one rank."""
    if "RANK" not in os.environ:
        return World()
    return World(
        rank=int(os.environ["RANK"]),
        size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


def pick_device(name: str, world: World) -> torch.device:
    """Return the device of this rank.

    Raises:
        MismatchError: a GPU is requested and there is none for this rank.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise MismatchError(
            "train.device='cuda', but torch sees no GPU here; "
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

    This does nothing for a single rank, or inside a block that has already joined. A failure of
    this rank is reported to the others; their failures are raised here, with
    the rank and its exit code.

    Args:
        world: the ranks.
        device: device of this rank.
        deadline: longest wait for another rank, in seconds; at least ``JOIN_SECONDS`` until
            ``shorten_waits`` is called.

    Raises:
        RankLostError: ranks are missing, died, or did not answer in time.
    """
    if world.size == 1 or dist.is_initialized():
        yield RankMonitor(world.rank, world.size)
        return
    if world.local_size == world.size:  # one machine: accept no connection from others
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, "lo")
    # torchrun keeps its store when it restarts all ranks; they must not see earlier failures.
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
                # NCCL would wait for the ranks that are gone.
                with suppress(RuntimeError):
                    dist.destroy_process_group()
            raise
        monitor.report_done()
        dist.destroy_process_group()


def shorten_waits(world: World, seconds: float) -> None:
    """Limit every later wait for another rank; earlier ones include reading and compiling."""
    if world.size > 1:
        if hasattr(dist, "set_timeout"):  # torch 2.15
            dist.set_timeout(timedelta(seconds=seconds))
        else:
            distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))


def _store(world: World) -> Store:
    """Open the store of the rendezvous: a file on one machine, else torchrun's store."""
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
            "that MASTER_ADDR is the first machine's address and MASTER_PORT is free and open there"
        ) from error
    return store
