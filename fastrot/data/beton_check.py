"""The rules that a ``.beton`` file must keep before anything in it is believed.

FFCV checks the version number and nothing else; a damaged file then yields stale pixels, zeros
or a crash. Every rule here is checked for all samples at once (numpy), on integers that cannot
wrap, and a broken one names the file, the offset and the first sample concerned.

Shapes: n samples, m entries of the allocation table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastrot.data.beton_format import (
    ALLOCATION,
    DESCRIPTOR,
    HEADER,
    MAX_FIELDS,
    RAW,
    VERSION,
    Field,
    Kind,
    align_up,
    check_page_size,
    metadata_start,
    parse_descriptor,
    record_dtype,
)
from fastrot.data.guess import looks_like
from fastrot.errors import BadDataError

U64 = NDArray[np.uint64]


def refuse(path: Path, offset: int, rule: str) -> NoReturn:
    """Raise the error of a file that breaks a rule.

    Raises:
        BadDataError: always.
    """
    raise BadDataError(
        f"{path}: at byte {offset}: {rule}; the file is damaged or was not finished: "
        "make it again with fastrot prepare, or restore it from a copy"
    )


def check_header(path: Path, size: int, raw: bytes) -> np.void:
    """Check the first 24 bytes against the size of the file.

    Args:
        path: for messages.
        size: of the file in bytes.
        raw: its first 24 bytes, fewer if it is shorter.
    """
    if raw[:2] != VERSION.to_bytes(2, "little"):
        raise BadDataError(
            f"{path}: {looks_like(raw)}, not a .beton file (those begin with version {VERSION}); "
            "make one with: fastrot prepare FOLDER OUT.beton"
        )
    if len(raw) < HEADER.itemsize:
        refuse(path, 0, f"{size} bytes, fewer than the header of {HEADER.itemsize}")
    header: np.void = np.frombuffer(raw, HEADER, 1)[0]
    if not 1 <= header["num_fields"] <= MAX_FIELDS:
        refuse(path, 2, f"{header['num_fields']} fields, must be 1 to {MAX_FIELDS}")
    if metadata_start(int(header["num_fields"])) > size:
        refuse(path, 2, f"{header['num_fields']} field descriptors do not fit into {size} bytes")
    try:
        check_page_size(int(header["page_size"]))
    except ValueError as error:
        refuse(path, 4, str(error))
    return header


def check_fields(path: Path, raw: bytes, page_size: int) -> tuple[Field, ...]:
    """Read the field descriptors and check that names differ and an array fits a page."""
    fields: list[Field] = []
    for start in range(0, len(raw), DESCRIPTOR.itemsize):
        offset = HEADER.itemsize + start
        try:
            field = parse_descriptor(raw[start : start + DESCRIPTOR.itemsize])
        except ValueError as error:
            refuse(path, offset, str(error))
        if any(field.name == other.name for other in fields):
            refuse(path, offset, f"two fields are named {field.name!r}")
        if field.nbytes > page_size:
            refuse(path, offset, f"an array of {field.nbytes} bytes exceeds a page")
        fields.append(field)
    return tuple(fields)


def check_sections(path: Path, size: int, header: np.void, fields: Sequence[Field]) -> None:
    """Check, before anything is allocated, that metadata and allocation table fit the file."""
    samples, table = int(header["num_samples"]), int(header["alloc_table_ptr"])
    start, record = metadata_start(len(fields)), record_dtype(fields).itemsize
    if table == 0:
        refuse(path, 16, "no allocation table: its writer was stopped before the end")
    if table > size:
        refuse(path, 16, f"allocation table at {table}, beyond the end at {size}: truncated")
    if samples < 1:
        refuse(path, 8, "no samples")
    if start + samples * record > table:
        refuse(path, 8, f"{samples} samples of {record} bytes do not fit before byte {table}")
    entries = samples * sum(not field.is_scalar for field in fields)
    if size - table != entries * ALLOCATION.itemsize:
        refuse(
            path,
            table,
            f"allocation table of {size - table} bytes, must be {entries * ALLOCATION.itemsize} "
            f"({entries} entries for {samples} samples)",
        )


class Allocations:
    """The checked allocation table: from pointer to size.

    Args:
        path: for messages.
        header: the checked header.
        data_start: offset of the first page.
        entries: the table, of shape (m,).
    """

    def __init__(self, path: Path, header: np.void, data_start: int, entries: NDArray[Any]) -> None:
        self._path = path
        self._offset = int(header["alloc_table_ptr"])
        self._samples = np.uint64(header["num_samples"])
        filled = np.flatnonzero(entries["size"])
        self._check_bounds(entries, filled, data_start, int(header["page_size"]))
        self._order = filled[np.argsort(entries["ptr"][filled], kind="stable")]
        ordered = entries[self._order]
        self._ptr: U64 = np.ascontiguousarray(ordered["ptr"])
        self._size: U64 = np.ascontiguousarray(ordered["size"])
        self._sample: U64 = np.ascontiguousarray(ordered["sample"])
        self._used = np.zeros(len(self._ptr), bool)
        self._refuse_first(
            self._order[:-1],
            self._ptr[:-1] + self._size[:-1] > self._ptr[1:],
            "its data overlaps that of another entry",
        )
        # FFCV gives an empty byte string the pointer of whatever comes next, so these entries
        # are kept apart: they own no bytes and prove nothing.
        self._empty = entries[entries["size"] == 0]

    def _check_bounds(
        self, entries: NDArray[Any], filled: NDArray[np.intp], data_start: int, page_size: int
    ) -> None:
        end = np.uint64(self._offset)
        all_rows = np.arange(len(entries))
        self._refuse_first(all_rows, entries["sample"] >= self._samples, "no sample has its id")
        self._refuse_first(all_rows, entries["ptr"] > end, "it points beyond the data")
        if not len(filled):
            return
        if self._offset % page_size or self._offset <= data_start:
            refuse(self._path, 16, f"allocation table at {self._offset}, must follow whole pages")
        ptr, size = entries["ptr"][filled], entries["size"][filled]
        self._refuse_first(filled, ptr < np.uint64(data_start), "it points before the data")
        self._refuse_first(filled, size > end - ptr, "its data ends beyond the pages")
        shift = np.uint64(page_size.bit_length() - 1)
        crosses = (ptr >> shift) != ((ptr + size - np.uint64(1)) >> shift)
        self._refuse_first(filled, crosses, "its data crosses a page")

    def _refuse_first(self, rows: NDArray[Any], broken: NDArray[np.bool_], rule: str) -> None:
        if broken.any():
            row = int(rows[int(np.argmax(broken))])
            refuse(
                self._path,
                self._offset + row * ALLOCATION.itemsize,
                f"allocation table entry {row}: {rule}",
            )

    def claim(
        self, pointers: U64, wanted: NDArray[np.bool_] | np.bool_
    ) -> tuple[U64, NDArray[np.bool_]]:
        """Sizes of the data of samples 0 to n-1 in one field, and which of them are good.

        An entry must have exactly this pointer and belong to this sample, and is used up.

        Args:
            pointers: of shape (n,).
            wanted: of shape (n,), or one for all: the others take no entry and are not good.
        """
        if not len(self._ptr):
            return np.zeros(len(pointers), np.uint64), np.zeros(len(pointers), bool)
        place = np.minimum(np.searchsorted(self._ptr, pointers), len(self._ptr) - 1)
        good = (self._ptr[place] == pointers) & ~self._used[place]
        good &= wanted
        good &= self._sample[place] == np.arange(len(pointers), dtype=np.uint64)
        self._used[place[good]] = True
        return self._size[place], good

    def check_empty(self, samples: U64, pointers: U64) -> None:
        """Check that the empty byte strings of the metadata are those of the table."""
        listed = np.sort(self._empty[["sample", "ptr"]], order=["sample", "ptr"])
        order = np.lexsort((pointers, samples))
        if len(samples) != len(listed) or not (
            np.array_equal(listed["sample"], samples[order])
            and np.array_equal(listed["ptr"], pointers[order])
        ):
            refuse(self._path, self._offset, "empty entries that the metadata does not have")


def check_metadata(
    path: Path,
    metadata: NDArray[Any],
    fields: Sequence[Field],
    table: Allocations,
    max_pixels: int,
) -> dict[int, U64]:
    """Check every metadata record against the table.

    Returns:
        The sizes in bytes, of shape (n,), for each field (by position) that has data in pages.
    """
    start, stride = metadata_start(len(fields)), metadata.dtype.itemsize
    columns = metadata.dtype.fields
    assert columns is not None

    def refuse_first(field: int, broken: NDArray[np.bool_], rule: str) -> None:
        if broken.any():
            sample = int(np.argmax(broken))
            offset = start + sample * stride + columns[str(field)][1]
            refuse(path, offset, f"sample {sample}, field {fields[field].name!r}: {rule}")

    sizes: dict[int, U64] = {}
    empty: list[tuple[U64, U64]] = []
    for i, field in enumerate(fields):
        if field.is_scalar:
            continue
        column = metadata[str(i)]
        pointers: U64 = np.ascontiguousarray(column["ptr"])
        is_empty = column["size"] == 0 if field.kind is Kind.BYTES else np.False_
        size, good = table.claim(pointers, ~is_empty)
        refuse_first(i, ~(good | is_empty), "its pointer has no entry of this sample in the table")
        if field.kind in (Kind.BYTES, Kind.JSON):
            size = np.where(is_empty, np.uint64(0), size)
            refuse_first(i, column["size"] != size, "its size is not that of its table entry")
        if field.kind is Kind.BYTES:
            rows: U64 = np.flatnonzero(is_empty).astype(np.uint64)
            empty.append((rows, pointers[is_empty]))
        if field.kind is Kind.IMAGE:
            mode = column["mode"]
            area = column["width"].astype(np.uint64) * column["height"]
            refuse_first(i, mode > RAW, "mode is neither 0 (JPEG) nor 1 (raw)")
            refuse_first(i, area == 0, "width or height is 0")
            refuse_first(i, area > max_pixels, f"more than {max_pixels} pixels")
            wrong = (mode == RAW) & (size != np.uint64(3) * area)
            refuse_first(i, wrong, "raw size is not 3 x width x height")
        elif field.dtype is not None:
            refuse_first(i, size != field.nbytes, f"size is not that of an array ({field.nbytes})")
        sizes[i] = size
    none: U64 = np.zeros(0, np.uint64)
    table.check_empty(
        np.concatenate([none, *(rows for rows, _ in empty)]),
        np.concatenate([none, *(pointers for _, pointers in empty)]),
    )
    return sizes


def data_start(header: np.void, fields: Sequence[Field]) -> int:
    """Offset of the first page boundary after the metadata."""
    end = metadata_start(len(fields)) + int(header["num_samples"]) * record_dtype(fields).itemsize
    return align_up(end, int(header["page_size"]))
