"""Checks of the allocation table of a ``.beton`` file, alone and against the metadata.

``check_entries`` looks at the table alone: every entry has its own bytes, inside the pages. Tables
of a million entries are checked block by block, so that numpy's temporary arrays stay in the
processor's cache and need no new memory.

``match_entries`` finds the entry of every value in the metadata: it must have exactly the pointer
in the metadata, belong to that sample, and serve no other value. FFCV's writer and ours put the
entries of a sample together in the order of its fields, so one comparison in that order suffices.
For any other table every pointer is looked up, which takes ten times as long; this is also how a
broken table is found and its first error named.

Shapes: n samples, F fields with data in pages, m = n * F entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastrot.data.beton.format import ALLOCATION, Field, Kind, metadata_start
from fastrot.errors import BadDataError

U64 = NDArray[np.uint64]
_SIZED = (Kind.BYTES, Kind.JSON)  # their size is in the metadata, too
_BLOCK = 2**14


def check_entries(path: Path, header: np.void, data_start: int, entries: NDArray[Any]) -> None:
    """Check that every entry refers to a sample and to its own bytes, inside the pages.

    Args:
        path: for messages.
        header: the checked header.
        data_start: offset of the first page.
        entries: the table, of shape (m,).

    Raises:
        BadDataError: an entry breaks a rule; the message names the first such entry.
    """
    table, page_size = int(header["alloc_table_ptr"]), int(header["page_size"])
    samples, end, start = header["num_samples"], np.uint64(table), np.uint64(data_start)
    shift, one = np.uint64(page_size.bit_length() - 1), np.uint64(1)
    refuse_first = partial(_refuse_first, path, table)
    last, in_order = np.uint64(0), True
    for block in blocks(len(entries)):
        rows = np.arange(block.start, block.stop)
        ptr, size = entries["ptr"][block], entries["size"][block]
        refuse_first(rows, entries["sample"][block] >= samples, "no sample has its id")
        refuse_first(rows, ptr > end, "it points beyond the data")
        filled = size > 0
        if not filled.all():
            rows, ptr, size = rows[filled], ptr[filled], size[filled]
        if not len(rows):
            continue
        if table % page_size or table <= data_start:
            refuse(path, 16, f"allocation table at {table}, must follow whole pages")
        refuse_first(rows, ptr < start, "it points before the data")
        refuse_first(rows, size > end - ptr, "its data ends beyond the pages")
        stop = ptr + size
        refuse_first(rows, (ptr >> shift) != ((stop - one) >> shift), "its data crosses a page")
        in_order = in_order and last <= ptr[0] and bool((stop[:-1] <= ptr[1:]).all())
        last = stop[-1]
    if not in_order:
        _check_overlaps(path, table, entries)


def match_entries(
    path: Path,
    table: int,
    metadata: NDArray[Any],
    fields: Mapping[int, Field],
    entries: NDArray[Any],
) -> dict[int, U64]:
    """Return the size in bytes of every piece of data, by the position of its field.

    Args:
        path: for messages.
        table: offset of the allocation table, for messages.
        metadata: the metadata records, of shape (n,).
        fields: the fields with data in pages, by their position in the file.
        entries: the checked table, of shape (m,).

    Returns:
        Sizes of shape (n,), by field.

    Raises:
        BadDataError: metadata and table disagree; the message names the first sample.
    """
    sizes = _compare(metadata, fields, entries)
    return _look_up(path, table, metadata, fields, entries) if sizes is None else sizes


def _check_overlaps(path: Path, table: int, entries: NDArray[Any]) -> None:
    """Check that no byte belongs to two entries, which may be in any order."""
    filled = np.flatnonzero(entries["size"])
    ptr = entries["ptr"][filled]
    stop = ptr + entries["size"][filled]
    # Starts and ends are sorted separately, much faster than by argsort. If the k-th end is at most
    # start k + 1 for every k, at most one entry has begun without having ended at any byte.
    if (np.sort(stop)[:-1] <= np.sort(ptr)[1:]).all():
        return
    order = np.argsort(ptr, kind="stable")
    overlap = stop[order][:-1] > ptr[order][1:]
    _refuse_first(
        path, table, filled[order][:-1], overlap, "its data overlaps that of another entry"
    )


def _refuse_first(
    path: Path, table: int, rows: NDArray[np.intp], broken: NDArray[np.bool_], rule: str
) -> None:
    if broken.any():
        row = int(rows[int(np.argmax(broken))])
        refuse(path, table + row * ALLOCATION.itemsize, f"allocation table entry {row}: {rule}")


def _compare(
    metadata: NDArray[Any], fields: Mapping[int, Field], entries: NDArray[Any]
) -> dict[int, U64] | None:
    """Return sizes by field if the entries of each sample are together and fit; else None."""
    samples = len(metadata)
    rows = entries.reshape(samples, len(fields))
    sizes: dict[int, U64] = {i: np.empty(samples, np.uint64) for i in fields}
    if not fields:
        return sizes
    in_file_order, owner = _owners(rows["sample"])
    if owner is None:
        return None
    for column, (i, field) in enumerate(fields.items()):
        values = metadata[str(i)]
        claims = [values["ptr"], values["size"]] if field.kind in _SIZED else [values["ptr"]]
        if not in_file_order:
            claims = [np.ascontiguousarray(claim) for claim in claims]
        for block in blocks(samples):
            found = rows[block, column]
            who = block if in_file_order else owner[block]
            for claim, entry in zip(claims, (found["ptr"], found["size"]), strict=False):
                if (claim[who] != entry).any():
                    return None
            if field.kind is not Kind.BYTES and not found["size"].all():
                return None
            sizes[i][who] = found["size"]
    return sizes


def _owners(ids: NDArray[np.uint64]) -> tuple[bool, NDArray[np.int64] | None]:
    """Return whether row s has the entries of sample s for all s, and the sample of each row.

    Args:
        ids: samples of the entries, of shape (n, F).

    Returns:
        (whether the rows are in the order of the samples, sample of each row, of shape (n,)); the
        latter is None if a row has entries of several samples, or several rows those of one.
    """
    owner = np.ascontiguousarray(ids[:, 0]).view(np.int64)
    if any((ids[block] != ids[block, :1]).any() for block in blocks(len(ids))):
        return False, None
    if all(
        (owner[block] == np.arange(block.start, block.stop)).all() for block in blocks(len(ids))
    ):
        return True, owner
    has_row = np.zeros(len(ids), bool)
    has_row[owner] = True
    return False, owner if has_row.all() else None


def _look_up(
    path: Path,
    table: int,
    metadata: NDArray[Any],
    fields: Mapping[int, Field],
    entries: NDArray[Any],
) -> dict[int, U64]:
    """Return the same as ``match_entries``, for entries in any order."""
    columns = metadata.dtype.fields
    assert columns is not None
    start, stride = metadata_start(len(columns)), metadata.dtype.itemsize

    def refuse_first(field: int, broken: NDArray[np.bool_], rule: str) -> None:
        if broken.any():
            sample = int(np.argmax(broken))
            offset = start + sample * stride + columns[str(field)][1]
            refuse(path, offset, f"sample {sample}, field {fields[field].name!r}: {rule}")

    filled = entries[entries["size"] > 0]
    last = np.array([(2**64 - 1, 2**64 - 1, 0)], ALLOCATION)  # so that every search finds an entry
    ordered = np.append(filled[np.argsort(filled["ptr"])], last)
    owners, starts, lengths = (
        np.ascontiguousarray(ordered[column]) for column in ("sample", "ptr", "size")
    )
    claimed = np.zeros(len(ordered), bool)
    samples = np.arange(len(metadata), dtype=np.uint64)
    # FFCV gives an empty byte string the pointer of whatever comes next, so these entries are
    # kept separate: they own no bytes and prove nothing.
    empty: list[tuple[int, int]] = []
    sizes: dict[int, U64] = {}
    for i, field in fields.items():
        column = metadata[str(i)]
        pointers: U64 = np.ascontiguousarray(column["ptr"])
        is_empty = np.zeros(len(column), bool)
        if field.kind is Kind.BYTES:
            is_empty = column["size"] == 0
            empty += zip(samples[is_empty].tolist(), pointers[is_empty].tolist(), strict=True)
        place = np.searchsorted(starts, pointers)
        good = (starts[place] == pointers) & (owners[place] == samples)
        good &= ~claimed[place] & ~is_empty
        claimed[place[good]] = True
        refuse_first(i, ~(good | is_empty), "its pointer has no entry of this sample in the table")
        sizes[i] = np.where(is_empty, np.uint64(0), lengths[place])
        if field.kind in _SIZED:
            refuse_first(i, column["size"] != sizes[i], "its size is not that of its table entry")
    if sorted(empty) != sorted(entries[["sample", "ptr"]][entries["size"] == 0].tolist()):
        refuse(path, table, "empty entries that the metadata does not have")
    return sizes


def blocks(count: int) -> Iterator[slice]:
    """Return slices that together cover ``count`` rows, each small enough for the cache."""
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


def refuse(path: Path, offset: int, rule: str) -> NoReturn:
    """Raise the error for a file that breaks a rule.

    Raises:
        BadDataError: always.
    """
    raise BadDataError(
        f"{path}: at byte {offset}: {rule}; the file is damaged or was not finished: "
        "make it again with fastrot prepare, or restore it from a copy"
    )
