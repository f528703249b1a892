"""The bytes that a ``.beton`` file stores for a value, checked as strictly as on reading."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrot.data.beton.format import JPEG, MAX_PIXELS, MAX_SIDE, RAW, Field, Kind
from fastrot.data.beton.reader import check_jpeg

POINTER = struct.Struct("<Q")


class SoundJpeg(NamedTuple):
    """A JPEG that its maker knows ``check_jpeg`` accepts, so its header is not read again.

    Attributes:
        data: the bytes of the file.
        height: height in pixels.
        width: width in pixels.
    """

    data: bytes
    height: int
    width: int


class Stored(NamedTuple):
    """The stored form of one value.

    Attributes:
        record: the value's part of the metadata record, without the pointer, which comes last for
            an image and first for everything else in pages.
        data: the bytes for a page; None for a number.
    """

    record: bytes
    data: memoryview | None


def encode_sample(
    fields: Sequence[Field], offsets: Sequence[int], values: Sequence[Any], record: bytearray
) -> tuple[list[memoryview], list[int]]:
    """Check the values of a sample and fill in its metadata record, except for the pointers.

    Args:
        fields: the fields of the file.
        offsets: offset of each field in the record.
        values: one for each field, as for ``encode_value``.
        record: the record, of zeros.

    Returns:
        The data for pages, and the offset in the record of the pointer to each piece of it.

    Raises:
        ValueError: a value does not fit its field; the message says which and why.
    """
    data: list[memoryview] = []
    pointers: list[int] = []
    for field, offset, value in zip(fields, offsets, values, strict=True):
        try:
            stored = encode_value(field, value)
        except (ValueError, TypeError, OverflowError, struct.error) as error:
            raise ValueError(f"field {field.name!r}: {error}") from None
        if stored.data is not None:
            # The pointer comes last in the record of an image, and first in any other.
            last = field.kind is Kind.IMAGE
            pointers.append(offset + len(stored.record) if last else offset)
            data.append(stored.data)
            offset += 0 if last else POINTER.size
        record[offset : offset + len(stored.record)] = stored.record
    return data, pointers


def encode_value(field: Field, value: Any) -> Stored:
    """Check a value and turn it into bytes.

    Args:
        field: the field of the value.
        value: Float: a number. Int: a 64-bit integer. Image: the bytes of a JPEG, a
            ``SoundJpeg``, or an array of shape (H, W, 3), uint8, to be stored raw. Bytes: bytes,
            or an array of shape (size,), uint8. JSON: anything ``json.dumps`` accepts. Array and
            tensor: an array (or a tensor in CPU memory) of exactly the field's shape and dtype.

    Raises:
        ValueError: the value does not fit the field; the message says why.
    """
    if field.kind is Kind.FLOAT:
        return Stored(struct.pack("<d", value), None)
    if field.kind is Kind.INT:
        if not -(2**63) <= int(value) < 2**63 or int(value) != value:
            raise ValueError(f"{value} is not a 64-bit integer")
        return Stored(struct.pack("<q", int(value)), None)
    if field.kind is Kind.IMAGE:
        return _encode_image(value)
    if field.kind is Kind.JSON:
        try:
            data = json.dumps(value).encode() + b"\0"
        except TypeError as error:
            raise ValueError(f"not expressible as JSON: {error}") from None
        return Stored(struct.pack("<Q", len(data)), memoryview(data))
    if field.kind is Kind.BYTES:
        data = _encode_bytes(value)
        return Stored(struct.pack("<Q", len(data)), memoryview(data))
    array = np.asarray(value)
    if array.dtype != field.dtype or array.shape != field.shape:
        raise ValueError(
            f"array of shape {array.shape} and dtype {array.dtype}; it must be "
            f"{field.shape} and {field.dtype}"
        )
    return Stored(b"", memoryview(array.tobytes()))


def _encode_image(value: Any) -> Stored:
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
            raise ValueError(
                f"image of shape {value.shape}, dtype {value.dtype}; it must be (H, W, 3) and uint8"
            )
        height, width, _ = value.shape
        mode, data = RAW, memoryview(value.tobytes())
    elif isinstance(value, SoundJpeg):
        mode, data = JPEG, memoryview(value.data)
        height, width = value.height, value.width
    elif isinstance(value, bytes | bytearray | memoryview):
        jpeg = bytes(value)
        height, width = check_jpeg(jpeg)
        mode, data = JPEG, memoryview(jpeg)
    else:
        raise ValueError(
            f"{type(value).__name__} is neither the bytes of a JPEG nor an array of pixels"
        )
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise ValueError(f"image of {width} x {height} pixels: sides must be 1 to {MAX_SIDE}")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"image of {width} x {height} pixels exceeds the cap of {MAX_PIXELS}; shrink it"
        )
    return Stored(struct.pack("<BHH", mode, width, height), data)


def _encode_bytes(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 1:
            raise ValueError(
                f"array of shape {value.shape}, dtype {value.dtype}; it must be (size,) and uint8"
            )
        return value.tobytes()
    if not isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"{type(value).__name__} is not bytes")
    return bytes(value)
