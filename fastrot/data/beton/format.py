"""The layout of a ``.beton`` file: FFCV's format, version 2.

::

    0                        header, 24 bytes
    24                       one descriptor of 1041 bytes for each of the F fields
    24 + 1041 F              n metadata records of R bytes, one per sample
    next multiple of page    pages: images and other data of variable size
    alloc_table_ptr          24 bytes for each piece of data in a page, until the end of the file

Integers are little-endian and pointers are offsets in the file. No piece of data crosses a
multiple of the page size. The sizes of images and arrays are only in the allocation table, where
their exact pointers find them. There is no magic number and no checksum: see ``manifest.py``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

VERSION = 2
MIN_PAGE_SIZE = 2**21
MAX_PAGE_SIZE = 2**31
DEFAULT_PAGE_SIZE = 2**23
MAX_FIELDS = 64
NAME_BYTES = 16
MAX_SIDE = 2**16 - 1
MAX_PIXELS = 2**28
"""Cap on the pixels of one image. The cap on image files is lower, and ``fastrot prepare`` can
raise it: whatever it admits, every reader of ``.beton`` files accepts."""

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
DESCRIPTOR = np.dtype([("kind", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
ALLOCATION = np.dtype([("sample", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

JPEG, RAW = 0, 1
"""The two values of an image's mode byte."""

_IMAGE_RECORD = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("ptr", "<u8")])
_BYTES_RECORD = np.dtype([("ptr", "<u8"), ("size", "<u8")])
_ARRAY_RECORD = np.dtype([("ptr", "<u8")], align=True)
_ARRAY_HEADER = np.dtype([("shape", "<u8", 32), ("length", "<u8")])
_NUMERIC = re.compile(r"[<>|=][biufc][0-9]{1,2}")


class Kind(IntEnum):
    """The type of a field, as stored in its descriptor."""

    FLOAT = 0
    INT = 1
    IMAGE = 2
    BYTES = 3
    ARRAY = 4
    JSON = 5
    TENSOR = 6


_CUSTOM = 255
_SCALARS = (Kind.FLOAT, Kind.INT)
_ARRAYS = (Kind.ARRAY, Kind.TENSOR)


@dataclass(frozen=True)
class Field:
    """One column of the dataset.

    Attributes:
        name: 1 to 16 printable ASCII characters.
        kind: type of the values.
        dtype: dtype of the elements; arrays and tensors only.
        shape: shape of one sample's array; arrays and tensors only.

    Raises:
        ValueError: a rule of the format is broken.

    Example:
        >>> Field("box", Kind.ARRAY, np.dtype("<f4"), (4,)).nbytes
        16
    """

    name: str
    kind: Kind
    dtype: np.dtype[Any] | None = None
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not (
            self.name.isascii() and self.name.isprintable() and 1 <= len(self.name) <= NAME_BYTES
        ):
            raise ValueError(
                f"field name {self.name!r} must be 1 to {NAME_BYTES} printable ASCII characters"
            )
        if self.kind not in _ARRAYS:
            if self.dtype is not None or self.shape:
                raise ValueError(f"field {self.name!r}: only arrays have a dtype and a shape")
            return
        if self.dtype is None or not _NUMERIC.fullmatch(self.dtype.str):
            raise ValueError(f"field {self.name!r}: dtype {self.dtype} is not plain numeric")
        if not 1 <= len(self.shape) <= 32 or min(self.shape) < 1:
            raise ValueError(
                f"field {self.name!r}: shape {self.shape} must have 1 to 32 dimensions, each >= 1"
            )

    @property
    def is_scalar(self) -> bool:
        """Return whether the value is in the metadata record itself."""
        return self.kind in _SCALARS

    @property
    def nbytes(self) -> int:
        """Return the bytes of one sample's array (0 for other kinds)."""
        return math.prod(self.shape) * self.dtype.itemsize if self.dtype is not None else 0

    @property
    def record(self) -> np.dtype[Any]:
        """Return the dtype of this field in a metadata record."""
        if self.kind is Kind.FLOAT:
            return np.dtype("<f8")
        if self.kind is Kind.INT:
            return np.dtype("<i8")
        if self.kind is Kind.IMAGE:
            return _IMAGE_RECORD
        return _ARRAY_RECORD if self.kind in _ARRAYS else _BYTES_RECORD


def record_dtype(fields: Sequence[Field]) -> np.dtype[Any]:
    """Return the dtype of a sample's metadata record; field i is named ``str(i)``.

    Numbers and array pointers are aligned to 8 bytes as in a C struct; images and byte strings
    are packed. This is numpy's ``align=True``, on which FFCV relies, too.
    """
    columns: list[tuple[str, DTypeLike]] = [
        (str(i), field.record) for i, field in enumerate(fields)
    ]
    return np.dtype(columns, align=True)


def metadata_start(num_fields: int) -> int:
    """Return the offset of the first metadata record."""
    return HEADER.itemsize + DESCRIPTOR.itemsize * num_fields


def align_up(offset: int, page_size: int) -> int:
    """Return the next page boundary at or after ``offset``."""
    return -(-offset // page_size) * page_size


def check_page_size(page_size: int) -> None:
    """Refuse a page size that the format does not allow.

    Raises:
        ValueError: it is not a power of two from 2 MiB to 2 GiB.
    """
    if page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE:
        raise ValueError(f"page size {page_size} must be a power of two from 2**21 to 2**31")


def pack_descriptors(fields: Sequence[Field]) -> bytes:
    """Return the descriptors of all fields as the file stores them."""
    packed = np.zeros(len(fields), DESCRIPTOR)
    for row, field in zip(packed, fields, strict=True):
        row["kind"] = field.kind
        row["name"][: len(field.name)] = np.frombuffer(field.name.encode(), np.uint8)
        arguments = _array_arguments(field) if field.dtype is not None else b""
        row["arguments"][: len(arguments)] = np.frombuffer(arguments, np.uint8)
    return packed.tobytes()


def _array_arguments(field: Field) -> bytes:
    assert field.dtype is not None
    description = json.dumps([["", field.dtype.str]]).encode()
    header = np.zeros((), _ARRAY_HEADER)
    header["shape"][: len(field.shape)] = field.shape
    header["length"] = len(description)
    return header.tobytes() + description


def parse_descriptor(descriptor: bytes) -> Field:
    """Read one descriptor of 1041 bytes.

    Raises:
        ValueError: the type is unknown, or the name or the arguments break a rule.
    """
    kind, name, arguments = descriptor[0], descriptor[1:17], descriptor[17:]
    text, _, rest = name.partition(b"\0")
    if any(rest):
        raise ValueError(f"field name {name!r} continues after its end")
    try:
        label = text.decode("ascii")
    except UnicodeDecodeError:
        raise ValueError(f"field name {text!r} is not ASCII") from None
    if kind == _CUSTOM:
        raise ValueError(
            f"field {label!r} has a custom type (255) that only the program that wrote the file "
            "can read; write it again with FFCV's own field types"
        )
    if kind not in list(Kind):
        raise ValueError(f"field {label!r} has unknown type {kind}")
    if kind in _ARRAYS:
        return Field(label, Kind(kind), *_parse_array_arguments(label, arguments))
    if any(arguments):
        raise ValueError(f"field {label!r} has arguments, but its type takes none")
    return Field(label, Kind(kind))


def _parse_array_arguments(name: str, arguments: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    header = np.frombuffer(arguments, _ARRAY_HEADER, 1)[0]
    sizes = [int(side) for side in header["shape"]]
    shape = tuple(sizes[: sizes.index(0)] if 0 in sizes else sizes)
    description, length = arguments[_ARRAY_HEADER.itemsize :], int(header["length"])
    if any(sizes[len(shape) :]) or length > len(description) or any(description[length:]):
        raise ValueError(f"field {name!r} has malformed array arguments")
    try:
        [[label, code]] = json.loads(description[:length].decode("ascii"))
        if label != "" or not isinstance(code, str) or not _NUMERIC.fullmatch(code):
            raise ValueError
        return np.dtype(code), shape
    except (ValueError, TypeError, RecursionError):  # also JSON and Unicode errors
        raise ValueError(
            f"field {name!r}: {description[:length][:60]!r} describes no plain numeric dtype"
        ) from None
