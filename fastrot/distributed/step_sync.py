"""Decide on all ranks alike what follows a step, by one all-reduce of flags between hosts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from fastrot.distributed.world import World


class Notices(Protocol):
    """Notices of this rank that all ranks are to know and the main rank writes down."""

    def pending(self) -> bool:
        """Return whether this rank has unpublished notices."""
        ...

    def publish(self) -> None:
        """Publish them; called on all ranks together, if one of them has some."""
        ...


@dataclass(frozen=True)
class Decision:
    """What all ranks do after a step, because at least one of them wants it.

    Attributes:
        stop: save and leave.
        log: read the device and report.
        save: write a checkpoint.
        publish: one of them has notices.
    """

    stop: bool
    log: bool
    save: bool
    publish: bool


def decide(world: World, *, stop: bool, log: bool, save: bool, publish: bool) -> Decision:
    """Decide what all ranks do; called on all of them after the same step.

    Args:
        world: the ranks.
        stop: this rank had a signal.
        log: it is time to; by the main rank's clock, which alone writes.
        save: likewise.
        publish: this rank has notices.
    """
    mine = (stop, log and world.is_main, save and world.is_main, publish)
    flags = world.max(torch.tensor(mine, dtype=torch.uint8)).tolist()
    return Decision(*map(bool, flags))
