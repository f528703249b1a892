"""A record of what a stopped writer of a ``.beton`` file has on disk, so that another can continue.

``X.beton.journal`` begins with one line of JSON that describes what is being written, followed by
one block per page, appended after the page itself was synced: the rows of the samples that end in
it, with a checksum. Blocks after an incomplete one are ignored.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fastrot.data.beton.format import Field, pack_descriptors, record_dtype
from fastrot.system.files import sync_folder

_BLOCK = struct.Struct("<QQQQ")  # page, samples in it, hash of the page, hash of block and rows
_MAX_HEADER_BYTES = 2**16


def row_dtype(fields: Sequence[Field]) -> np.dtype[Any]:
    """Return the dtype of a writer's row per sample: metadata record, allocations, checksum.

    ``position`` is the caller's own counter.
    """
    in_pages = sum(not field.is_scalar for field in fields)
    return np.dtype(
        [
            ("record", "u1", (record_dtype(fields).itemsize,)),
            ("ptr", "<u8", (in_pages,)),
            ("size", "<u8", (in_pages,)),
            ("checksum", "<u8"),
            ("position", "<i8"),
        ]
    )


@dataclass(frozen=True)
class Plan:
    """The subject of a journal; a writer continues only a journal with its own plan.

    Attributes:
        identity: the caller's identity of the conversion: sources and settings.
        descriptors: hash of the field descriptors.
        capacity: largest number of samples.
        page_size: size of a page in bytes.
    """

    identity: str
    descriptors: str
    capacity: int
    page_size: int

    @classmethod
    def of(cls, identity: str, fields: Sequence[Field], capacity: int, page_size: int) -> Plan:
        """Return the plan of a writer."""
        descriptors = xxhash.xxh3_128_hexdigest(pack_descriptors(fields))
        return cls(identity, descriptors, capacity, page_size)

    def difference(self, other: Plan) -> str:
        """Return the differences, for messages; empty if there are none."""
        mine, theirs = asdict(self), asdict(other)
        return ", ".join(
            f"{key} {theirs[key]} -> {mine[key]}" for key in mine if mine[key] != theirs[key]
        )


class Journal:
    """A journal open for appending.

    Args:
        path: path of the journal.
        descriptor: file descriptor, open for writing at the end.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def create(cls, path: Path, plan: Plan, temporary: Path) -> Journal:
        """Create the journal of what is written to ``temporary``.

        Raises:
            OSError: as the system reports it.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        journal = cls(path, descriptor)
        header = {"temporary": temporary.name, **asdict(plan)}
        write_all(descriptor, json.dumps(header).encode() + b"\n")
        os.fsync(descriptor)
        sync_folder(path.parent)
        return journal

    def append(self, page: int, page_hash: int, rows: NDArray[Any]) -> None:
        """Record that a page and the samples in it are on disk.

        The record itself is not synced: it survives the end of this process, and if a power cut
        destroys it, only the work on this page is lost.

        Raises:
            OSError: as the system reports it.
        """
        write_all(self._descriptor, _pack(page, page_hash, rows))

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass
class Recovered:
    """The contents of a journal.

    Attributes:
        plan: the plan of its writer.
        temporary: name of the unfinished file.
        blocks: (page, hash of the page, rows), in page order from 0.
        ends: offset in the journal of the end of each block.
        start: offset of the first block.
    """

    plan: Plan
    temporary: str
    blocks: list[tuple[int, int, NDArray[Any]]]
    ends: list[int]
    start: int

    def drop_last(self) -> None:
        """Drop the last block."""
        self.blocks.pop()
        self.ends.pop()

    def reopen(self, path: Path) -> Journal:
        """Truncate the journal after the last valid block and open it for appending.

        Raises:
            OSError: as the system reports it.
        """
        end = self.ends[-1] if self.ends else self.start
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.ftruncate(descriptor, end)
        os.lseek(descriptor, end, os.SEEK_SET)
        return Journal(path, descriptor)


def recover(path: Path, fields: Sequence[Field]) -> Recovered | None:
    """Read a journal; return None if there is none, or if its first line is incomplete.

    Args:
        path: path of the journal.
        fields: fields of the writer that is to continue; blocks of other fields are not read.

    Raises:
        OSError: as the system reports it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    line, newline, _ = data[:_MAX_HEADER_BYTES].partition(b"\n")
    try:
        header = json.loads(line)
        temporary = header.pop("temporary")
        plan = Plan(**header)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None
    if not newline or not isinstance(temporary, str):
        return None
    recovered = Recovered(plan, temporary, [], [], len(line) + 1)
    if plan.descriptors == Plan.of("", fields, 0, 0).descriptors:
        _read_blocks(data, row_dtype(fields), recovered)
    return recovered


def _read_blocks(data: bytes, dtype: np.dtype[Any], recovered: Recovered) -> None:
    offset, room = recovered.start, recovered.plan.capacity
    while offset + _BLOCK.size <= len(data):
        page, count, page_hash, _ = _BLOCK.unpack_from(data, offset)
        end = offset + _BLOCK.size + count * dtype.itemsize
        room -= count
        if page != len(recovered.blocks) or end > len(data) or room < 0:
            return
        rows = np.frombuffer(data, dtype, count, offset + _BLOCK.size)
        if data[offset:end] != _pack(page, page_hash, rows):
            return
        recovered.blocks.append((page, page_hash, rows))
        recovered.ends.append(end)
        offset = end


def _pack(page: int, page_hash: int, rows: NDArray[Any]) -> bytes:
    body = rows.tobytes()
    digest = xxhash.xxh3_64(_BLOCK.pack(page, len(rows), page_hash, 0))
    digest.update(body)
    return _BLOCK.pack(page, len(rows), page_hash, digest.intdigest()) + body


def write_all(descriptor: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Write all of ``data`` in as many calls as needed, at ``offset`` or the current position.

    Raises:
        OSError: as the system reports it; a disk that accepts only a part fails on the rest.
    """
    view, done = memoryview(data).cast("B"), 0
    while done < len(view):
        rest = view[done:]
        if offset is None:
            done += os.write(descriptor, rest)
        else:
            done += os.pwrite(descriptor, rest, offset + done)
