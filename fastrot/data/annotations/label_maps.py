"""Label maps on disk: PNG files of class numbers, and the MATLAB files of SBD.

Numbers are read as they are stored: a palette only says how to show them. Importing this module
imports no torch.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastrot.data.images.decode import MAX_PIXELS
from fastrot.errors import BadDataError, StorageError

IGNORE = 255
"""Value of an ignored pixel, as in the published protocols."""

REFUSED = -1
_HEADER_BYTES = 26
_PALETTE, _GREY = 3, 0  # colour types of a PNG


def value_map(classes: dict[int, int]) -> NDArray[np.int16]:
    """Return the class of each stored value, of shape (256,).

    Args:
        classes: class by stored value; any value that is not in it is refused.
    """
    values = np.full(256, REFUSED, np.int16)
    values[list(classes)] = list(classes.values())
    return values


def read_label_map(path: Path, values: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Read a label map, ``.png`` or ``.mat``, of shape (H, W), with classes and ``IGNORE``.

    Args:
        path: the file.
        values: as ``value_map`` returns them.

    Raises:
        BadDataError: the file is missing or damaged, or has a value that stands for no class.
        StorageError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadDataError(f"{path}: missing; extract the whole dataset") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error}") from None
    stored = _read_mat(path, data) if path.suffix == ".mat" else _read_png(path, data)
    classes = values[stored]
    if (classes == REFUSED).any():
        row, column = np.argwhere(classes == REFUSED)[0].tolist()
        known = np.flatnonzero(values != REFUSED)
        last = known[known != IGNORE].max()
        border = f", and {IGNORE} is ignored" if IGNORE in known else ""
        raise BadDataError(
            f"{path}: the pixel in row {row}, column {column} has the value {stored[row, column]}; "
            f"valid are {known.min()} to {last}{border}; extract the dataset again"
        )
    return classes.astype(np.uint8)


def _read_png(path: Path, data: bytes) -> NDArray[np.uint8]:
    header = data[:_HEADER_BYTES]
    if not header.startswith(b"\x89PNG\r\n\x1a\n") or len(header) < _HEADER_BYTES:
        raise BadDataError(f"{path}: not a PNG file; extract the dataset again")
    depth, colour = header[-2:]
    if colour != _PALETTE and (colour, depth) != (_GREY, 8):
        raise BadDataError(
            f"{path}: a PNG of colour type {colour} with {depth} bits; a label map has a palette "
            "(type 3), or 8 bits of grey (type 0); save the class numbers, not their colours"
        )
    width, height = (int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
    if width * height > MAX_PIXELS:
        raise BadDataError(f"{path}: {width} x {height} pixels; at most {MAX_PIXELS} are read")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.array(image, np.uint8)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of any type
        raise BadDataError(f"{path}: damaged PNG: {error}; extract the dataset again") from None


def _read_mat(path: Path, data: bytes) -> NDArray[np.uint8]:
    from scipy.io import loadmat  # imported here: this takes longer than most commands

    try:
        content = loadmat(io.BytesIO(data), variable_names=["GTcls"])
        stored = content["GTcls"][0, 0]["Segmentation"]
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise BadDataError(
            f"{path}: not a label map of SBD, which has GTcls.Segmentation: "
            f"{type(error).__name__}: {error}; extract the dataset again"
        ) from None
    if stored.ndim != 2 or stored.dtype != np.uint8:
        raise BadDataError(
            f"{path}: GTcls.Segmentation of shape {stored.shape} and {stored.dtype}, not of two "
            "dimensions and uint8; extract the dataset again"
        )
    return np.asarray(stored, np.uint8)
