"""One rank of ``fastrot bench allreduce``: times all-reduces, together with all other ranks.

Calls follow each other without a pause, like the buckets of a backward pass, and do not overlap.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from fastrot.benchmarks.common.harness import rotated
from fastrot.distributed.world import joined, pick_device, read_world

_WARM_UP = 3
_MOST = 1000


def measure(
    sizes: Sequence[int], *, rounds: int, seconds: float, device: torch.device
) -> dict[int, list[float]]:
    """Return the seconds of an all-reduce, by bytes of its float32 buffer, one value per round.

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
    """Return the mean seconds of ``count`` all-reduces."""
    _wait(buffer)
    started = time.perf_counter()
    for _ in range(count):
        dist.all_reduce(buffer)
    _wait(buffer)
    return (time.perf_counter() - started) / count


def _wait(buffer: torch.Tensor) -> None:
    if buffer.is_cuda:
        torch.cuda.synchronize(buffer.device)


def main() -> None:
    """Join the group, measure, and print the results of rank 0."""
    wanted = json.loads(sys.argv[1])
    world = read_world()
    device = pick_device(wanted["device"], world)
    torch.set_num_threads(1)
    with joined(world, device):
        found = measure(
            wanted["sizes"], rounds=wanted["rounds"], seconds=wanted["seconds"], device=device
        )
    if world.is_main:
        print(json.dumps({str(size): values for size, values in found.items()}))


if __name__ == "__main__":
    main()
