"""Which samples each step saw over all ranks, as recorded in ``samples.jsonl``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xxhash

from fastrot.data.loader import IndexedBatch
from fastrot.distributed.world import World
from fastrot.system.jsonl import JsonLines


class SampleLog:
    """Writes one record per step, with the ids in the order of the ranks, as they were delivered.

    The ids are those that the loaders delivered, not those that were requested, so the log of a
    run is the same on any number of ranks only if its loaders are correct.

    Args:
        lines: file to write to; None on ranks that write nothing.
        world: the ranks.
        kind: ``digest``: a 64-bit hash of the ids. ``ids``: the ids. ``none``: nothing.
    """

    def __init__(self, lines: JsonLines | None, world: World, kind: str) -> None:
        self._lines = lines
        self._world = world
        self._kind = kind
        self._noted: list[tuple[int, int, list[torch.Tensor]]] = []

    def note(self, step: int, epoch: int, batches: Sequence[IndexedBatch]) -> None:
        """Remember what this rank saw in a step."""
        if self._kind != "none":
            self._noted.append((step, epoch, [batch.index for batch in batches]))

    def write(self) -> None:
        """Write what was noted since the last call.

        Collective: all ranks must call it after the same step.
        """
        if not self._noted:
            return
        mine = torch.stack([torch.cat(ids) for _, _, ids in self._noted])  # (steps, N)
        every = self._world.gather(mine).numpy()  # (ranks, steps, N)
        if self._lines is not None:
            for position, (step, epoch, _) in enumerate(self._noted):
                ids = np.ascontiguousarray(every[:, position].reshape(-1))
                self._lines.append({"step": step, "epoch": epoch, **self._digest(ids)})
        self._noted.clear()

    def _digest(self, ids: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, Any]:
        if self._kind == "ids":
            return {"ids": ids.tolist()}
        return {"ids_xxh3_64": xxhash.xxh3_64_hexdigest(ids.tobytes())}

    def cut_back(self, step: int) -> None:
        """Remove the records of all later steps."""
        if self._lines is not None:
            self._lines.cut_back(step)

    def flush_to_disk(self) -> None:
        """Make sure that what was written is on disk."""
        if self._lines is not None:
            self._lines.flush_to_disk()

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()
