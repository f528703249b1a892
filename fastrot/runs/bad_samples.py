"""Bad samples that a run has replaced: listed once, counted over all ranks, and limited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastrot.data.dataset import BadSampleError
from fastrot.distributed.error_reporting import raised_by_all
from fastrot.distributed.world import World
from fastrot.errors import BadDataError
from fastrot.system.console import Say
from fastrot.system.jsonl import JsonLines, read_json_lines


class BadSamples:
    """The contents of a run's ``bad_samples.jsonl``. Each sample is listed and counted once.

    Args:
        path: the file; earlier starts of the run may have written to it.
        limit: number of different bad samples that a run may have.
        world: the ranks; the main one writes.
        say: prints one line to the user.
    """

    def __init__(self, path: Path, limit: int, world: World, say: Say) -> None:
        self._path, self._limit, self._world, self._say = path, limit, world, say
        self._known = {
            (str(record["part"]), int(record["sample"])) for record in read_json_lines(path)
        }
        self._new: list[dict[str, Any]] = []

    def note(self, part: str, error: BadSampleError) -> None:
        """Note that a loader of this rank has replaced a sample.

        Raises:
            BadDataError: there are now too many.
        """
        record = {"part": part, "sample": error.sample, "name": error.name}
        if (part, error.sample) in self._known or any(
            (each["part"], each["sample"]) == (part, error.sample) for each in self._new
        ):
            return
        self._new.append({**record, "reason": error.reason})
        if self._world.size == 1:
            self.publish()

    def pending(self) -> bool:
        """Return whether this rank knows of bad samples that the others do not."""
        return bool(self._new)

    def publish(self) -> None:
        """Share the new bad samples: all ranks call this together, and the main one lists them.

        Raises:
            BadDataError: there are too many over all ranks.
        """
        told, self._new = self._world.gather_json(self._new), []
        lines = JsonLines(self._path, warn=self._say) if self._world.is_main else None
        for record in (each for rank in told for each in rank):
            key = (str(record["part"]), int(record["sample"]))
            if key in self._known:
                continue
            self._known.add(key)
            if lines is not None:
                lines.append(record)
            self._say(
                f"replaced bad sample {record['sample']} ({record['name']}): {record['reason']}"
            )
        if lines is not None:
            lines.close()
        if len(self._known) > self._limit:
            error = BadDataError(
                f"{len(self._known)} bad samples, more than data.max_bad={self._limit}; "
                "bad_samples.jsonl in the run folder lists them; repair the data, or raise "
                "data.max_bad"
            )
            raise raised_by_all(error, self._world.rank)
