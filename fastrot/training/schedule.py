"""When a run logs, validates, saves and ends, in steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """When to log, validate, save and end; every duration is in steps, converted once.

    Attributes:
        total_steps: number of optimizer steps after which the run ends.
        steps_per_epoch: optimizer steps per epoch.
        accumulation: micro-batches per step.
        views_per_image: views per source image; None: the task makes none.
        rate: returns the learning rate of a step.
        validation_steps: steps between two validations; None: never.
        checkpoint_steps: steps between two checkpoints; None: by time only.
        checkpoint_seconds: time between two checkpoints, in seconds.
        log_seconds: time between two readings of the device, in seconds.
        keep_checkpoints: number of checkpoints to keep.
        sample_log: ``digest``, ``ids`` or ``none``.
    """

    total_steps: int
    steps_per_epoch: int
    accumulation: int
    views_per_image: int | None
    rate: Callable[[int], float]
    validation_steps: int | None
    checkpoint_steps: int | None
    checkpoint_seconds: float
    log_seconds: float
    keep_checkpoints: int
    sample_log: str

    def validation_due(self, done: int) -> bool:
        """Return whether to validate after this many steps."""
        every = self.validation_steps
        return every is not None and (done % every == 0 or done == self.total_steps)

    def save_due(self, done: int) -> bool:
        """Return whether to save after this many steps, regardless of time."""
        every = self.checkpoint_steps
        return every is not None and done % every == 0
