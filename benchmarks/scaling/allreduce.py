"""``fastrot bench allreduce``: measures the link between ranks, for ``fastrot plan --record``.

It starts ranks on this machine (NCCL if each has a GPU, otherwise gloo). Under torchrun or srun it
uses the ranks that these started, so that it can also measure links between nodes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from fastrot.benchmarks.common.harness import (
    SavedReport,
    check_positive,
    key_fields,
    machine_record,
    rotated,
    spread,
)
from fastrot.benchmarks.common.points_report import empty_table, say
from fastrot.benchmarks.plan.collectives import Fabric, Link, measured_link, ring
from fastrot.benchmarks.scaling.rank_processes import run_ranks
from fastrot.distributed.world import joined, pick_device, read_world
from fastrot.errors import UsageError

SIZES = (1024, 16 * 1024, 256 * 1024, 1024**2, 4 * 1024**2, 25 * 1024**2, 64 * 1024**2)
_START_SECONDS = 180.0  # for imports, rendezvous and NCCL's set-up
_WARM_UP = 3
_MOST = 1000


@dataclass(frozen=True)
class AllReduceReport(SavedReport):
    """Results of the benchmark."""

    times: Mapping[int, Sequence[float]]  # seconds by bytes of the buffer, one value per round
    ranks: int  # number of ranks
    nodes: int  # number of nodes
    backend: str  # nccl or gloo
    link: Link  # latency from the smallest buffer, bandwidth from the largest one
    record: Mapping[str, Any]  # the machine, the versions, the command
    main: bool = True
    """Whether this process prints and saves: rank 0, or the one that started the ranks."""
    exit_code: int = field(default=0, init=False)

    def to_json(self) -> dict[str, Any]:
        """Return one object of plain values."""
        return {
            "bench": "allreduce",
            "ranks": self.ranks,
            "nodes": self.nodes,
            "backend": self.backend,
            "latency_us": float(f"{1e6 * self.link.latency:.5g}"),
            "gb_per_s": float(f"{self.link.bandwidth / 1e9:.5g}"),
            **key_fields(self.record),
            "points": [
                {"bytes": size, "seconds": spread(values).to_json()}
                for size, values in self.times.items()
            ],
            "record": dict(self.record),
        }

    def save(self, json: Path | None, append: Path | None) -> None:
        """Save like any other report, but only on the main rank."""
        if self.main:
            super().save(json, append)

    def show(self, console: Console) -> None:
        """Print the report."""
        if not self.main:
            return
        where = f"{self.nodes} nodes" if self.nodes > 1 else "one machine"
        title = f"all-reduce, {self.ranks} ranks on {where}, {self.backend}: medians"
        table = empty_table(title, "bytes", "ms", "of rounds", "GB/s", "model", names=0)
        fabric = Fabric(self.link, self.link, 1 if self.nodes > 1 else self.ranks)
        for size, values in self.times.items():
            time = spread(values)
            sent = 2 * (self.ranks - 1) / self.ranks * size
            predicted = ring(self.ranks, size, fabric).seconds
            table.add_row(
                f"{size:,}",
                f"{1e3 * time.median:,.3f}",
                f"{1e3 * time.low:,.3f} - {1e3 * time.high:,.3f}",
                f"{sent / time.median / 1e9:,.3f}",
                f"{100 * (predicted / time.median - 1):+.0f} %",
            )
        console.print(table)
        say(
            console,
            f"link: {1e6 * self.link.latency:,.1f} us per hop, "
            f"{self.link.bandwidth / 1e9:,.3f} GB/s (what one rank sends in a ring)",
        )


@dataclass(frozen=True)
class AllReduceBenchRequest:
    """Options of ``fastrot bench allreduce``.

    Raises:
        UsageError: a value is wrong.
    """

    ranks: int = 2  # number of processes to start; under torchrun, those that it started are used
    sizes: tuple[int, ...] | None = None
    """Bytes of the buffer, rounded up to whole float32 values; None: ``SIZES``."""
    device: str = "auto"  # auto, cpu or cuda
    rounds: int = 5  # number of rounds; each times every size once
    seconds: float = 0.3  # how long each size is repeated in a round

    def __post_init__(self) -> None:
        check_positive(rounds=self.rounds, seconds=self.seconds)
        if len(self.whole_sizes) < 2 or self.whole_sizes[0] <= 0:
            raise UsageError(
                f"--sizes={list(self.sizes or ())}: name two sizes or more, in bytes above 0"
            )

    @property
    def whole_sizes(self) -> list[int]:
        """Return the sizes as bytes of whole float32 values, without duplicates, ascending."""
        return sorted({-(-size // 4) * 4 for size in self.sizes or SIZES})


def run_allreduce(request: AllReduceBenchRequest) -> AllReduceReport:
    """Measure all-reduces of several sizes.

    Raises:
        UsageError: there is only one rank.
        MismatchError: there are fewer GPUs than ranks.
        RankLostError: a rank failed.
    """
    ranks, device = request.ranks, request.device
    if "RANK" in os.environ:
        return _among_ranks(request)
    if ranks < 2:
        raise UsageError(f"--ranks={ranks}: a rank alone has no link to measure; use two or more")
    said = run_ranks(
        "fastrot.benchmarks.scaling.allreduce", [json.dumps(asdict(request))], ranks=ranks,
        deadline=_START_SECONDS
        + 4 * len(request.whole_sizes) * (request.rounds + 1) * request.seconds,
    )  # fmt: skip
    line = next(line for line in reversed(said.splitlines()) if line.startswith("{"))
    times = {int(size): values for size, values in json.loads(line).items()}
    record = machine_record()
    on_gpu = device == "cuda" or (device == "auto" and bool(record.get("gpus")))
    return _report(times, ranks, 1, "nccl" if on_gpu else "gloo", record, main=True)


def _among_ranks(request: AllReduceBenchRequest) -> AllReduceReport:
    """Measure as one of the ranks that torchrun, srun or ``run_ranks`` started."""
    world = read_world()
    if world.size < 2:
        raise UsageError("torchrun started one rank, which has no link to measure; start two")
    where = pick_device(request.device, world)
    with joined(world, where):
        times = measure(
            request.whole_sizes, rounds=request.rounds, seconds=request.seconds, device=where
        )
    nodes = -(-world.size // world.local_size)
    backend = "nccl" if where.type == "cuda" else "gloo"
    return _report(times, world.size, nodes, backend, machine_record(), main=world.is_main)


def _report(
    times: Mapping[int, Sequence[float]],
    ranks: int,
    nodes: int,
    backend: str,
    record: Mapping[str, Any],
    *,
    main: bool,
) -> AllReduceReport:
    medians = {size: spread(values).median for size, values in times.items()}
    link = measured_link(medians, ranks=ranks, nodes=nodes)
    return AllReduceReport(times, ranks, nodes, backend, link, record, main)


def measure(
    sizes: Sequence[int], *, rounds: int, seconds: float, device: torch.device
) -> dict[int, list[float]]:
    """Return the times of an all-reduce, in seconds, by bytes of its float32 buffer.

    Each size has one value per round.

    Calls follow each other without a pause, like the buckets of a backward pass, and do not
    overlap.

    Args:
        sizes: bytes, multiples of 4.
        rounds: number of rounds; the order of the sizes differs between rounds.
        seconds: how long each size is repeated in a round.
        device: device of this rank, which has joined the group.
    """
    buffers = {size: torch.zeros(size // 4, device=device) for size in sizes}
    counts = {}
    for size, buffer in buffers.items():
        _time(buffer, _WARM_UP)
        # The count must be the same on all ranks, or they would wait for each other forever.
        each = torch.tensor(_time(buffer, _WARM_UP), dtype=torch.float64, device=device)
        dist.all_reduce(each, dist.ReduceOp.MAX)
        counts[size] = min(_MOST, max(_WARM_UP, int(seconds / float(each))))
    found: dict[int, list[float]] = {size: [] for size in sizes}
    names = [str(size) for size in sizes]
    for number in range(rounds):
        for name in rotated(names, number):
            dist.barrier()
            found[int(name)].append(_time(buffers[int(name)], counts[int(name)]))
    return found


def _time(buffer: torch.Tensor, count: int) -> float:
    """Return the mean time of ``count`` all-reduces, in seconds."""
    _wait(buffer)
    started = time.perf_counter()
    for _ in range(count):
        dist.all_reduce(buffer)
    _wait(buffer)
    return (time.perf_counter() - started) / count


def _wait(buffer: torch.Tensor) -> None:
    if buffer.is_cuda:
        torch.cuda.synchronize(buffer.device)


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = _among_ranks(AllReduceBenchRequest(**json.loads(sys.argv[1])))
    if found.main:
        print(json.dumps(found.times))
