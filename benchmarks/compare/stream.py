"""What a competitor is: something that delivers images, and says how far it works ahead.

One Python file for each competitor has a function ``open_stream(job)``. It runs in a process of
its own (``worker.py``), so that its start-up, memory and processor time are its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class Delivery(NamedTuple):
    """Work that was finished.

    Attributes:
        images: how many.
        pixels: of shape (N, S, S, 3), uint8, valid until the next delivery; None: not shown.
        seconds: how long it took where the competitor knows better than the clock of who waits
            for it (the decoder alone); None: the clock counts.
    """

    images: int
    pixels: torch.Tensor | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Stream:
    """An endless stream of deliveries.

    Attributes:
        deliveries: without an end.
        ahead: deliveries that may lie ready when nobody took one for a while. So many are
            taken before the clock starts: else every round would begin with a gift.
        group: deliveries that come together, as from several processes that each make a whole
            batch: the clock stops only after a whole group.
        notes: settings worth recording.
    """

    deliveries: Iterator[Delivery]
    ahead: int = 0
    group: int = 1
    notes: dict[str, Any] = field(default_factory=dict)
