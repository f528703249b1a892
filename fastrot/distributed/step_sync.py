"""What ranks decide together after a step, by one exchange of flags between their hosts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from fastrot.distributed.world import World


class Notices(Protocol):
    """What ranks have to tell each other, and the main rank to write down, besides numbers."""

    def pending(self) -> bool:
        """Whether this rank has something to tell."""
        ...

    def publish(self) -> None:
        """Tell it; called by all ranks together, if one of them has something to tell."""
        ...


@dataclass(frozen=True)
class Decision:
    """What all ranks do after a step: whatever one of them wants.

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
    """Called by all ranks after the same step.

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
