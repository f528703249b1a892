"""A step of several ranks, message by message: what communication adds to the step of one rank.

Gradients are sent in buckets, filled in the order in which the backward pass completes them. There
is one channel: NCCL runs the collectives of a process group one after the other, in the order in
which they were called. A bucket is sent as soon as the channel is free, while the backward pass
goes on; the statistics of a batch norm are waited for, and wait themselves until the buckets before
them are through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

FIRST_BUCKET = 1024 * 1024
"""Bytes at which the first bucket is closed."""
BUCKET = 25 * 1024 * 1024
"""Bytes at which any other is closed: ``bucket_cap_mb`` of torch."""


def bucket_of(sizes: Sequence[int], *, first: int = FIRST_BUCKET, cap: int = BUCKET) -> list[int]:
    """Number of the bucket of each gradient.

    Args:
        sizes: bytes of the gradients, in the order in which they become ready.
        first: bytes at which the first bucket is closed.
        cap: bytes at which any other is.

    Example:
        >>> bucket_of([3, 3, 3, 3, 3], first=2, cap=5)
        [0, 1, 1, 2, 2]
    """
    numbers, number, filled = [], 0, 0
    for size in sizes:
        numbers.append(number)
        filled += size
        if filled >= (cap if number else first):
            number, filled = number + 1, 0
    return numbers


@dataclass(frozen=True)
class BackwardLayer:
    """One layer, as the backward pass meets it.

    Attributes:
        seconds: of its computation.
        waits: seconds of the message that it cannot go on without (0: none).
        buckets: bytes of the gradient buckets that are complete after it.
    """

    seconds: float
    waits: float = 0.0
    buckets: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sent:
    """One bucket: seconds since the backward pass began."""

    nbytes: int
    ready: float
    begin: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """The backward pass of one step.

    Attributes:
        computing: seconds of its computation alone.
        seconds: until the last gradient is reduced, and the computation done.
        waiting: of them spent on messages that the computation waited for.
        sent: the buckets.
    """

    computing: float
    seconds: float
    waiting: float
    sent: tuple[Sent, ...]

    @property
    def exposed(self) -> float:
        """Seconds that communication adds."""
        return self.seconds - self.computing


def simulate(
    layers: Sequence[BackwardLayer], transfer: Callable[[int], float], *, overlap: bool = True
) -> Timeline:
    """Run a backward pass.

    Args:
        layers: in the order in which they are met, the head of the network first.
        transfer: seconds of the all-reduce of so many bytes.
        overlap: whether buckets are sent while the computation goes on. Ranks on a CPU that has
            no idle core send with the core that they compute on.
    """
    now = free = waiting = 0.0
    sent = []
    for layer in layers:
        now += layer.seconds
        if layer.waits:
            asked = now
            now = free = max(now, free) + layer.waits
            waiting += now - asked
        for nbytes in layer.buckets:
            begin = max(now, free)
            free = begin + transfer(nbytes)
            sent.append(Sent(nbytes, now, begin, free))
            if not overlap:
                now = free
    computing = sum(layer.seconds for layer in layers)
    return Timeline(computing, max(now, free), waiting, tuple(sent))
