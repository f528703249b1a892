"""Interface of a competitor, which delivers images and states how far it works ahead.

Each competitor is a Python file with a function ``open_stream(job)``. It runs in a separate process
(``worker.py``), so its start-up, memory and processor time can be measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class Delivery(NamedTuple):
    """A piece of finished work.

    Attributes:
        images: number of images.
        pixels: of shape (N, S, S, 3), uint8, valid until the next delivery; None: not shown.
        seconds: duration, if the competitor measures it more precisely than whoever waits for it
            (the decoder alone); None: the time spent waiting counts.
    """

    images: int
    pixels: torch.Tensor | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Stream:
    """An endless stream of deliveries."""

    deliveries: Iterator[Delivery]  # endless iterator
    ahead: int = 0
    """Number of deliveries that may be ready when none was taken for a while. This many are taken
    before the clock starts; otherwise a round would count work done before it."""
    group: int = 1
    """Number of deliveries that arrive together, as from several processes that each make a whole
    batch: the clock stops only after a whole group."""
    notes: dict[str, Any] = field(default_factory=dict)  # settings worth recording
