"""``fastrot bench allreduce``: measures the link between ranks, for ``fastrot plan --record``.

It starts ranks on this machine (NCCL if each has a GPU, otherwise gloo). Under torchrun or srun it
uses the ranks that these started, so that it can also measure links between nodes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastrot.benchmarks.common.harness import (
    SavedReport,
    check_positive,
    key_fields,
    machine_record,
    spread,
)
from fastrot.benchmarks.plan.collectives import Fabric, Link, measured_link, ring
from fastrot.benchmarks.scaling.allreduce_rank import measure
from fastrot.benchmarks.scaling.rank_processes import run_ranks
from fastrot.distributed.world import joined, pick_device, read_world
from fastrot.errors import UsageError

SIZES = (1024, 16 * 1024, 256 * 1024, 1024**2, 4 * 1024**2, 25 * 1024**2, 64 * 1024**2)
_START_SECONDS = 180.0  # for imports, rendezvous and NCCL's set-up


@dataclass(frozen=True)
class AllReduceReport(SavedReport):
    """Results of the benchmark.

    Attributes:
        times: seconds by bytes of the buffer, one value per round.
        ranks: number of ranks.
        nodes: number of nodes.
        backend: nccl or gloo.
        link: latency from the smallest buffer, bandwidth from the largest one.
        record: the machine, the versions, the command.
        main: whether this process prints and saves: rank 0, or the one that started the ranks.
    """

    times: Mapping[int, Sequence[float]]
    ranks: int
    nodes: int
    backend: str
    link: Link
    record: Mapping[str, Any]
    main: bool = True
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
        """Save as every report does, but only on the main rank."""
        if self.main:
            super().save(json, append)

    def show(self, console: Console) -> None:
        """Print the report for people."""
        if not self.main:
            return
        where = f"{self.nodes} nodes" if self.nodes > 1 else "one machine"
        table = Table(
            title=f"all-reduce, {self.ranks} ranks on {where}, {self.backend}: medians",
            title_justify="left",
        )
        for head in ("bytes", "ms", "of rounds", "GB/s", "model"):
            table.add_column(head, justify="right")
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
        console.print(
            f"link: {1e6 * self.link.latency:,.1f} us per hop, "
            f"{self.link.bandwidth / 1e9:,.3f} GB/s (what one rank sends in a ring)",
            highlight=False,
        )


@dataclass(frozen=True)
class AllReduceBenchRequest:
    """Options of ``fastrot bench allreduce``.

    Attributes:
        ranks: number of processes to start; under torchrun, those that it started are used.
        sizes: bytes of the buffer, rounded up to whole float32 values; None: ``SIZES``.
        device: auto, cpu or cuda.
        rounds: number of rounds; each times every size once.
        seconds: how long each size is repeated in a round.

    Raises:
        UsageError: a value is wrong.
    """

    ranks: int = 2
    sizes: tuple[int, ...] | None = None
    device: str = "auto"
    rounds: int = 5
    seconds: float = 0.3

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
    ranks, sizes, device = request.ranks, request.whole_sizes, request.device
    if "RANK" in os.environ:
        return _among_ranks(request)
    if ranks < 2:
        raise UsageError(f"--ranks={ranks}: a rank alone has no link to measure; use two or more")
    wanted = {"sizes": sizes, "device": device, "rounds": request.rounds,
              "seconds": request.seconds}  # fmt: skip
    said = run_ranks(
        "fastrot.benchmarks.scaling.allreduce_rank", [json.dumps(wanted)], ranks=ranks,
        deadline=_START_SECONDS + 4 * len(sizes) * (request.rounds + 1) * request.seconds,
    )  # fmt: skip
    line = next(line for line in reversed(said.splitlines()) if line.startswith("{"))
    times = {int(size): values for size, values in json.loads(line).items()}
    record = machine_record()
    on_gpu = device == "cuda" or (device == "auto" and bool(record.get("gpus")))
    return _report(times, ranks, 1, "nccl" if on_gpu else "gloo", record, main=True)


def _among_ranks(request: AllReduceBenchRequest) -> AllReduceReport:
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
