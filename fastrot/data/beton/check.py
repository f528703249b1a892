"""The rules that a ``.beton`` file must satisfy before its contents are trusted.

FFCV checks only the version number; a damaged file then yields stale pixels, zeros or a crash.
Every rule here is checked for all samples at once (numpy), on integers that cannot overflow, and
an error names the file, the offset and the first sample concerned.

Shapes: n samples, m entries of the allocation table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrot.data.beton.format import (
    ALLOCATION,
    DESCRIPTOR,
    HEADER,
    MAX_FIELDS,
    NAME_BYTES,
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
from fastrot.data.beton.match import blocks, check_entries, match_entries, refuse
from fastrot.data.images.file_type import looks_like
from fastrot.errors import BadDataError

U64 = NDArray[np.uint64]


def check_header(path: Path, size: int, raw: bytes) -> np.void:
    """Check the first 24 bytes against the size of the file.

    Args:
        path: for messages.
        size: size of the file in bytes.
        raw: its first 24 bytes, or fewer if it is shorter.
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
        refuse(path, 2, f"{header['num_fields']} fields; there must be 1 to {MAX_FIELDS}")
    if metadata_start(int(header["num_fields"])) > size:
        refuse(path, 2, f"{header['num_fields']} field descriptors do not fit into {size} bytes")
    try:
        check_page_size(int(header["page_size"]))
    except ValueError as error:
        refuse(path, 4, str(error))
    return header


def check_fields(path: Path, raw: bytes, page_size: int) -> tuple[Field, ...]:
    """Read the field descriptors; check that names differ and that each array fits into a page."""
    fields: list[Field] = []
    for start in range(0, len(raw), DESCRIPTOR.itemsize):
        offset = HEADER.itemsize + start
        try:
            field = parse_descriptor(raw[start : start + DESCRIPTOR.itemsize])
        except ValueError as error:
            refuse(path, offset, str(error))
        if any(field.name == other.name for other in fields):
            raise _same_name(path, field.name)
        if field.nbytes > page_size:
            refuse(path, offset, f"an array of {field.nbytes} bytes exceeds a page")
        fields.append(field)
    return tuple(fields)


def _same_name(path: Path, name: str) -> BadDataError:
    cut = ""
    if len(name) == NAME_BYTES:
        cut = f": FFCV cuts names to {NAME_BYTES} characters, and two longer ones became the same"
    return BadDataError(
        f"{path}: two fields are named {name!r}{cut}; write the file again with names that differ "
        f"in their first {NAME_BYTES} characters"
    )


def check_sections(path: Path, size: int, header: np.void, fields: Sequence[Field]) -> None:
    """Check, before allocating anything, that metadata and allocation table fit into the file."""
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
            f"allocation table of {size - table} bytes; it must be {entries * ALLOCATION.itemsize} "
            f"({entries} entries for {samples} samples)",
        )


def check_structure(
    path: Path,
    header: np.void,
    fields: Sequence[Field],
    metadata: NDArray[Any],
    entries: NDArray[Any],
    max_pixels: int,
) -> dict[int, U64]:
    """Check the allocation table, and every metadata record against it.

    Args:
        path: for messages.
        header: the checked header.
        fields: the fields in file order.
        metadata: the metadata records, of shape (n,).
        entries: the allocation table, of shape (m,).
        max_pixels: refuse larger images.

    Returns:
        Sizes in bytes, of shape (n,), for each field with data in pages, by position.

    Raises:
        BadDataError: a rule is broken; the message names the first entry or sample.
    """
    stored = {i: field for i, field in enumerate(fields) if not field.is_scalar}
    columns = metadata.dtype.fields
    assert columns is not None
    check_entries(path, header, data_start(header, fields), entries)
    sizes = match_entries(path, int(header["alloc_table_ptr"]), metadata, stored, entries)
    for i, field in stored.items():
        start, stride = metadata_start(len(fields)) + columns[str(i)][1], metadata.dtype.itemsize
        for block in blocks(len(metadata)):
            values, size = metadata[str(i)][block], sizes[i][block]
            for broken, rule in _value_rules(field, values, size, max_pixels):
                if broken.any():
                    sample = block.start + int(np.argmax(broken))
                    offset = start + sample * stride
                    refuse(path, offset, f"sample {sample}, field {field.name!r}: {rule}")
    return sizes


def _value_rules(
    field: Field, values: NDArray[Any], size: U64, max_pixels: int
) -> Iterator[tuple[NDArray[np.bool_], str]]:
    """Yield each rule for the values of a field, preceded by a mask of the values that break it."""
    if field.kind is Kind.IMAGE:
        mode, area = values["mode"], values["width"].astype(np.uint64) * values["height"]
        yield mode > RAW, "mode is neither 0 (JPEG) nor 1 (raw)"
        yield area == 0, "width or height is 0"
        yield area > max_pixels, f"more than {max_pixels} pixels"
        yield (mode == RAW) & (size != np.uint64(3) * area), "raw size is not 3 x width x height"
    elif field.dtype is not None:
        yield size != field.nbytes, f"size is not that of an array ({field.nbytes})"


def data_start(header: np.void, fields: Sequence[Field]) -> int:
    """Return the offset of the first page boundary after the metadata."""
    end = metadata_start(len(fields)) + int(header["num_samples"]) * record_dtype(fields).itemsize
    return align_up(end, int(header["page_size"]))
