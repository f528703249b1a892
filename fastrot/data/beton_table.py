"""The rules that the allocation table of a ``.beton`` file must keep by itself.

Tables of a million entries are checked block by block: what numpy makes on the way then stays in
the cache and costs no fresh memory.

Shapes: m entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastrot.data.beton_format import ALLOCATION
from fastrot.errors import BadDataError

_BLOCK = 2**14


def refuse(path: Path, offset: int, rule: str) -> NoReturn:
    """Raise the error of a file that breaks a rule.

    Raises:
        BadDataError: always.
    """
    raise BadDataError(
        f"{path}: at byte {offset}: {rule}; the file is damaged or was not finished: "
        "make it again with fastrot prepare, or restore it from a copy"
    )


def blocks(count: int) -> Iterator[slice]:
    """Slices of a size that the cache holds, which together cover ``count`` rows."""
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


def check_entries(path: Path, header: np.void, data_start: int, entries: NDArray[Any]) -> None:
    """Check that every entry names a sample and bytes of its own, inside the pages.

    Args:
        path: for messages.
        header: the checked header.
        data_start: offset of the first page.
        entries: the table, of shape (m,).

    Raises:
        BadDataError: it breaks a rule; the message names the first entry that does.
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


def _check_overlaps(path: Path, table: int, entries: NDArray[Any]) -> None:
    """Check that no byte belongs to two entries; they lie in any order."""
    filled = np.flatnonzero(entries["size"])
    ptr = entries["ptr"][filled]
    stop = ptr + entries["size"][filled]
    # Sorted apart, which is much faster than finding their order: as many starts lie at or before
    # a byte as entries have begun there, as many ends as have ended, so at most one covers it.
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
