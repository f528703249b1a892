"""Delivery of host batches to a device: left on the host, or copied to a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastrot.benchmarks.compare.stream import Delivery

_BUFFERS = 3


def delivered(batches: Iterator[Delivery], device: str) -> Iterator[Delivery]:
    """Yield the batches on the device; copies to a GPU use pinned buffers and do not block."""
    if device == "cpu":
        yield from batches
        return
    stream = torch.cuda.Stream()
    pinned: list[torch.Tensor] = []
    copied = [torch.cuda.Event() for _ in range(_BUFFERS)]
    for number, batch in enumerate(batches):
        assert batch.pixels is not None
        slot = number % _BUFFERS
        if slot == len(pinned):
            pinned.append(torch.empty_like(batch.pixels, pin_memory=True))
        copied[slot].synchronize()  # waits for the copy that used this buffer, if any
        pinned[slot].copy_(batch.pixels)
        with torch.cuda.stream(stream):
            images = pinned[slot].to(device, non_blocking=True)
            copied[slot].record(stream)
        torch.cuda.current_stream().wait_stream(stream)
        images.record_stream(torch.cuda.current_stream())
        yield Delivery(batch.images, images)
