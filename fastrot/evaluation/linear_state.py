"""The state of a linear probe between epochs, in one file that is either whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fastrot.errors import BadDataError, StorageError
from fastrot.storage import sync_folder

Curves = dict[str, list[list[float]]]
"""By layer: [training loss, top-1, top-5 in percent] of every epoch so far."""


def save_state(path: Path, tensors: Mapping[str, torch.Tensor], curves: Curves) -> None:
    """Replace the file by this state; its epoch is the length of the curves.

    Raises:
        StorageError: it cannot be written; the state before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        save_file(dict(tensors), temporary, metadata={"curves": json.dumps(curves)})
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path}: cannot be written ({error}); free space and run the same command again: it "
            "continues"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], Curves] | None:
    """What ``save_state`` wrote; None: nothing.

    Raises:
        BadDataError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            curves = json.loads((file.metadata() or {})["curves"])
    except (OSError, SafetensorError, ValueError, KeyError):
        raise BadDataError(f"{path}: damaged; remove it, and the probe starts anew") from None
    return tensors, curves


def remove_dead_writes(path: Path) -> None:
    """What a killed writer of this file left beside it."""
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        stale.unlink(missing_ok=True)
