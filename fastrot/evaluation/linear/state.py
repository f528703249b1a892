"""The state of an unfinished linear probe, in one file that is either complete or absent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fastrot.errors import BadDataError, StorageError
from fastrot.system.files import write_atomic

Curves = dict[str, list[list[float]]]
"""By layer: [training loss, top-1, top-5 in percent] of every epoch so far."""


@dataclass
class Progress:
    """The progress of a probe.

    Attributes:
        curves: curves of the finished epochs.
        step: number of finished steps in the current epoch.
        losses: one pair (mean training loss by layer, number of samples) per interval between loss
            checks.
    """

    curves: Curves
    step: int = 0
    losses: list[tuple[dict[str, float], int]] = field(default_factory=list)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Progress:
        """Return what ``dataclasses.asdict`` made plain."""
        losses = [(dict(means), int(samples)) for means, samples in saved["losses"]]
        return cls(dict(saved["curves"]), int(saved["step"]), losses)

    @property
    def epoch(self) -> int:
        """Return the number of finished epochs."""
        return len(next(iter(self.curves.values())))

    def fits(self, layers: Mapping[str, object], steps: int) -> bool:
        """Return whether this progress fits these layers and epochs of ``steps`` steps."""
        return (
            self.curves.keys() == layers.keys()
            and len({len(curve) for curve in self.curves.values()}) == 1
            and 0 <= self.step < steps
            and all(losses.keys() == layers.keys() for losses, _ in self.losses)
        )


def save_state(path: Path, tensors: Mapping[str, torch.Tensor], progress: Progress) -> None:
    """Replace the file by this state.

    Raises:
        StorageError: it cannot be written; the previous state is untouched.
    """
    data = save(dict(tensors), metadata={"progress": json.dumps(asdict(progress))})
    try:
        write_atomic(path, data)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error}); free space and run the same command again: it "
            "continues"
        ) from None


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], Progress] | None:
    """Load what ``save_state`` wrote; None if there is no file.

    Raises:
        BadDataError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            saved = json.loads((file.metadata() or {})["progress"])
        progress = Progress.from_json(saved)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise BadDataError(
            f"{path}: damaged; remove it, and the probe starts from scratch"
        ) from None
    return tensors, progress
