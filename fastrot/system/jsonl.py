"""JSON Lines files that survive a kill at any moment, and JSON files that are not trusted."""

from __future__ import annotations

import json
import logging
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fastrot.errors import StorageError
from fastrot.system.files import open_regular

_MOST_OBJECT_BYTES = 16 * 2**20

_logger = logging.getLogger(__name__)


class JsonLines:
    """Append records to a file, one JSON object per line, each in a single system call.

    A line is complete or absent: a part written to a full disk is removed at once; a part left
    by a crash is dropped by ``cut_back`` and ignored by ``read_json_lines``. A record that cannot
    be written is lost, with one warning: a log never stops training. NaN and infinity become null,
    so that the lines are valid JSON.

    Args:
        path: the file; it is created if missing.
        warn: called once, with one line, when a write has failed.

    Raises:
        StorageError: the file cannot be opened.
    """

    def __init__(self, path: str | Path, *, warn: Callable[[str], None] = _logger.warning) -> None:
        self.path = Path(path)
        self._warn = warn
        self._warned = False
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            raise StorageError(f"{path}: cannot be opened ({error.strerror})") from None
        if stat.S_ISFIFO(os.fstat(self._descriptor).st_mode):  # reading it would block forever
            self.close()
            raise StorageError(f"{path}: a named pipe, not a file; remove it")

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record of numbers, strings, None, and lists and mappings of these."""
        try:
            _append(self._descriptor, [json.dumps(_finite(record), allow_nan=False)])
        except OSError as error:
            self._lost(error)

    def flush_to_disk(self) -> None:
        """Make all lines durable, before the commit of a checkpoint that relies on them."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._lost(error)

    def cut_back(self, last_step: int) -> None:
        """Drop everything after the last record whose ``step`` is at most ``last_step``.

        Called on resume with the checkpoint's step, so that repeated steps are logged once.
        Records without a step are kept or dropped with the record before them.

        Raises:
            StorageError: the file cannot be read or truncated.
        """
        keep = position = 0
        try:
            with self.path.open("rb") as file:
                for line in file:
                    position += len(line)
                    record = parse_json_line(line)
                    if record is None:
                        continue
                    step = record.get("step")
                    if isinstance(step, int | float) and step > last_step:
                        break
                    keep = position
            os.ftruncate(self._descriptor, keep)
            os.fsync(self._descriptor)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be cut back ({error.strerror})") from None

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _lost(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            self._warn(
                f"{self.path}: a line was lost ({error.strerror or error}); training continues and "
                "further losses are not reported: free space on that disk"
            )


def append_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append all records or none to a results file, one JSON object per line; it may be new.

    Raises:
        OSError: as the system reports it; the file is unchanged.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        _append(descriptor, map(json.dumps, records))
    finally:
        os.close(descriptor)


def read_object(path: Path) -> dict[str, Any] | str:
    """Return the JSON object of a file, or a line that says what is wrong with it."""
    try:
        if path.stat().st_size > _MOST_OBJECT_BYTES:
            return f"{path.name} is larger than {_MOST_OBJECT_BYTES >> 20} MiB"
        tree = json.loads(path.read_bytes())
    except FileNotFoundError:
        return f"there is no {path.name}"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror or error})"
    except (ValueError, RecursionError):
        return f"{path.name} is damaged: not JSON"
    return tree if isinstance(tree, dict) else f"{path.name} is damaged: not an object"


def read_json_lines(
    path: str | Path, *, left_out: Callable[[bytes], object] = lambda line: None
) -> Iterator[dict[str, Any]]:
    """Yield the records of a file in order; damaged lines are skipped, a missing file is empty.

    Args:
        path: the file.
        left_out: called with each line that is not a record; a torn line has no newline.

    Raises:
        OSError: as the system reports it, or the file is not regular.
    """
    try:
        file = open_regular(Path(path))
    except FileNotFoundError:
        return
    with file:
        for line in file:
            record = parse_json_line(line)
            if record is None:
                left_out(line)
            else:
                yield record


def parse_json_line(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line; None if it is torn (no newline) or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _append(descriptor: int, lines: Iterable[str]) -> None:
    """Write lines in one system call; if a full disk cuts them off, remove the part again."""
    data = "".join(f"{line}\n" for line in lines).encode()
    written = os.write(descriptor, data)
    if written < len(data):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise OSError(f"{written} of {len(data)} bytes written")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
