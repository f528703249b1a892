"""A common decision of all ranks after a step, by one all-reduce of flags between hosts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from fastrot.distributed.world import World


class Notices(Protocol):
    """Notices from this rank to all ranks, recorded by the main rank."""

    def pending(self) -> bool:
        """Return whether this rank has unpublished notices."""
        ...

    def publish(self) -> None:
        """Publish the notices; called on all ranks together if one of them has any."""
        ...


@dataclass(frozen=True)
class Decision:
    """What all ranks do after a step because at least one of them needs it.

    Attributes:
        stop: save and exit.
        log: read the device and report.
        save: write a checkpoint.
        publish: publish the notices.
    """

    stop: bool
    log: bool
    save: bool
    publish: bool


def decide(world: World, *, stop: bool, log: bool, save: bool, publish: bool) -> Decision:
    """Decide what all ranks do; called on all of them after the same step.

    Args:
        world: the ranks.
        stop: this rank received a signal.
        log: it is time to log; only the value of the main rank counts.
        save: it is time to save; only the value of the main rank counts.
        publish: this rank has notices.
    """
    mine = (stop, log and world.is_main, save and world.is_main, publish)
    flags = world.max(torch.tensor(mine, dtype=torch.uint8)).tolist()
    return Decision(*map(bool, flags))
