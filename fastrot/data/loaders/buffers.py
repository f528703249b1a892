"""Memory for batches: filled by threads on the host, delivered as tensors on the device.

Allocating memory costs more than copying a batch, so buffers are reused: on the host as soon as
nothing refers to a delivered batch any more, and pinned ones as soon as their copy to the GPU has
finished.

Shapes: a batch has N images; a crop has side S.
"""

from __future__ import annotations

import sys
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray


class HostBuffers:
    """Batches that stay on the host.

    Args:
        batch_size: largest N.
        size: S.
        keep: number of buffers to keep for reuse; more are allocated while more batches are held.
    """

    def __init__(self, batch_size: int, size: int, *, keep: int) -> None:
        self._shape = (batch_size, size, size, 3)
        self._keep = keep
        self._buffers: list[NDArray[np.uint8]] = []

    def take(self, count: int) -> NDArray[np.uint8]:
        """Return memory of shape (N, S, S, 3) that nothing else refers to."""
        unused = _free(self._buffers)
        if unused is not None:
            return unused[:count]
        buffer = np.empty(self._shape, np.uint8)
        if len(self._buffers) < self._keep:
            self._buffers.append(buffer)
        return buffer[:count]

    def deliver(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Return a buffer from ``take`` as a tensor."""
        return torch.from_numpy(images)

    def give_back(self, images: NDArray[np.uint8]) -> None:
        """Do nothing: a buffer is free again once nothing refers to it."""

    def close(self) -> None:
        """Release all buffers; delivered batches stay valid."""
        self._buffers.clear()


def _free(buffers: list[NDArray[np.uint8]]) -> NDArray[np.uint8] | None:
    """Return a buffer that nothing but the list refers to."""
    for buffer in buffers:
        if sys.getrefcount(buffer) <= _UNUSED:
            return buffer
    return None


def _references_of_an_unused_buffer() -> int:
    """Return the count that the search above sees; its own references vary by Python version."""
    seen = [0]
    for buffer in [np.empty(1, np.uint8)]:
        seen[0] = sys.getrefcount(buffer)
    return seen[0]


_UNUSED = _references_of_an_unused_buffer()


class PinnedBuffers:
    """Batches for a GPU: pinned memory, copied on a separate stream.

    Args:
        batch_size: largest N.
        size: S.
        keep: largest number of pinned buffers; if all are in use, ``take`` waits for a copy.
        device: the GPU.
    """

    def __init__(self, batch_size: int, size: int, *, keep: int, device: torch.device) -> None:
        self._shape = (batch_size, size, size, 3)
        self._keep = keep
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._count = 0
        self._taken: dict[int, torch.Tensor] = {}
        self._unused: list[torch.Tensor] = []
        self._copying: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()

    def take(self, count: int) -> NDArray[np.uint8]:
        """Return pinned memory of shape (N, S, S, 3)."""
        if self._unused:
            pinned = self._unused.pop()
        elif self._copying and (self._count >= self._keep or self._copying[0][0].query()):
            event, pinned = self._copying.popleft()
            event.synchronize()
        else:
            pinned = torch.empty(self._shape, dtype=torch.uint8, pin_memory=True)
            self._count += 1
        array: NDArray[np.uint8] = pinned.numpy()[:count]
        self._taken[array.ctypes.data] = pinned
        return array

    def deliver(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Copy a buffer to the GPU; the current stream waits for the copy, but not the host."""
        pinned = self._taken.pop(images.ctypes.data)
        with torch.cuda.stream(self._stream):
            copy = pinned[: len(images)].to(self._device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        self._copying.append((event, pinned))
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        copy.record_stream(current)  # it was allocated on the other one
        return copy

    def give_back(self, images: NDArray[np.uint8]) -> None:
        """Take back a buffer that will not be delivered and that nothing writes to any more."""
        self._unused.append(self._taken.pop(images.ctypes.data))

    def close(self) -> None:
        """Wait for the copies and release all buffers."""
        for event, _ in self._copying:
            event.synchronize()
        self._copying.clear()
        self._taken.clear()
        self._unused.clear()


def batch_buffers(
    batch_size: int, size: int, *, keep: int, device: torch.device
) -> HostBuffers | PinnedBuffers:
    """Return buffers for batches on this device."""
    if device.type == "cuda":
        return PinnedBuffers(batch_size, size, keep=keep, device=device)
    return HostBuffers(batch_size, size, keep=keep)
