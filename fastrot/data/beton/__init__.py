"""FFCV's ``.beton`` files, format version 2: a bounds-checked reader and an atomic writer.

The public face of ``format`` (layout), ``check`` (the rules), ``reader`` and ``writer``;
independent of FFCV and of torch.

Example:
    >>> fields = [Field("image", Kind.IMAGE), Field("label", Kind.INT)]
    >>> with BetonWriter("two.beton", fields, capacity=2) as writer:  # doctest: +SKIP
    ...     for label in (0, 1):
    ...         _ = writer.add(np.full((8, 8, 3), label, np.uint8), label)
    ...     _ = writer.commit(class_names=["black", "nearly black"])
    >>> with BetonFile.open("two.beton") as file:  # doctest: +SKIP
    ...     file.ints("label").tolist(), file.payload(1, "image")[0]
    ([0, 1], 1)
"""

from __future__ import annotations

from fastrot.data.beton.format import DEFAULT_PAGE_SIZE, JPEG, MAX_PIXELS, RAW, Field, Kind
from fastrot.data.beton.reader import BetonFile
from fastrot.data.beton.writer import BetonWriter

__all__ = [
    "DEFAULT_PAGE_SIZE",
    "JPEG",
    "MAX_PIXELS",
    "RAW",
    "BetonFile",
    "BetonWriter",
    "Field",
    "Kind",
]
