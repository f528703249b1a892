"""Rate of copies from pinned host memory to the GPU: the same batch again and again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fastrot.benchmarks.compare.stream import Delivery, Stream
from fastrot.benchmarks.loader.readers.job import LoaderJob

_COPIES = 16  # copies per delivery


def open_stream(job: Mapping[str, Any]) -> Stream:
    """Return a stream of copies of one uint8 batch, made on a side CUDA stream."""
    return Stream(_copies(LoaderJob(**job)))


def _copies(job: LoaderJob) -> Iterator[Delivery]:
    shape = (job.batch, job.size, job.size, 3)
    host = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(shape, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.Stream()
    while True:
        with torch.cuda.stream(stream):
            for _ in range(_COPIES):
                device.copy_(host, non_blocking=True)
        stream.synchronize()
        yield Delivery(_COPIES * job.batch)
