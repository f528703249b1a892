"""A ``.beton`` file as a dataset for the loaders."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrot.data.beton import manifest
from fastrot.data.beton.fields import UNNAMED, NamedFields
from fastrot.data.beton.format import MAX_PIXELS, RAW, Kind
from fastrot.data.beton.labels import checked_labels
from fastrot.data.beton.reader import BetonFile, sample_name
from fastrot.data.dataset import BadSampleError, Encoded
from fastrot.data.images.decode import DecodeError, decode_image
from fastrot.kernels.decode.crop import Spans


class BetonDataset:
    """The images and labels of a ``.beton`` file, in the fields that ``fields.py`` chooses.

    Thread-safe; a copy in another process, forked or pickled, has its own file position. A pickled
    copy opens the file on the first read and refuses it if it has changed.

    Args:
        path: the file.
        checksums: compare each sample with the manifest's checksum if there is a manifest.
        max_pixels: refuse larger images.
        named: the fields of images and labels, if their names are unusual.

    Attributes beyond the ``Dataset`` contract:
        image_field: name of the image field; if it is not the first, the digest identifies it.
        label_choice: identifies a label field other than the first; else empty.
        checksums: those that ``read`` compares with, of shape (n,), uint64, or None.

    Raises:
        UsageError: there is no such file.
        BadDataError: the file or its manifest is damaged, or a label has no class name.
        StorageError: the system cannot read it.
    """

    applies_exif: bool = False

    def __init__(
        self,
        path: str | Path,
        *,
        checksums: bool = True,
        max_pixels: int = MAX_PIXELS,
        named: NamedFields = UNNAMED,
    ) -> None:
        self.path = Path(path)
        self._max_pixels, self._named = max_pixels, named
        self._opening = threading.Lock()
        file = BetonFile.open(self.path, max_pixels=max_pixels, named=named)
        try:
            self._identity, self.image_field = file.identity, file.image_field.name
            described = manifest.load(file)
            self.class_names = None if described is None else described.class_names
            self.digest = file.structure if described is None else described.digest
            self.origin = _origin(described) or self.digest
            image, self.label_choice = _unlike_the_first(file)
            self.digest += image
            self.unlabelled = file.label_field.why_not
            self.fields = _fields_read(file)
            self.left_out = "" if described is None else described.left_out
            self.checksums = described.checksums if described is not None and checksums else None
            self._decoded = described is not None and described.pixels_decoded
            self.labels = checked_labels(file, self.class_names)
            self.byte_sizes = file.data_sizes.astype(np.int64)
            self.stored_bytes = int(self.byte_sizes.sum())
        except BaseException:
            file.close()
            raise
        self._file: BetonFile | None = file

    @property
    def file(self) -> BetonFile:
        """Return the open file; a pickled copy opens it here.

        Raises:
            BadDataError: it is no longer the file that was opened first.
        """
        file = self._file
        if file is None:
            with self._opening:
                if self._file is None:
                    fresh = BetonFile.open(
                        self.path, max_pixels=self._max_pixels, named=self._named
                    )
                    fresh.check_unchanged(self._identity)
                    self._file = fresh
                file = self._file
        return file

    @property
    def has_checksums(self) -> bool:
        """Return whether ``read`` compares checksums."""
        return self.checksums is not None

    @property
    def checksums_suffice(self) -> bool:
        """Return whether ``read`` compares checksums, and all images were decoded once.

        A file made with ``prepare --copy`` has checksums of images that were never decoded.
        """
        return self.has_checksums and self._decoded

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, sample: int) -> str:
        """Return the name of a sample, ``FILE.beton sample 17``."""
        return sample_name(self.path, sample)

    def sizes(self, samples: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return widths and heights, of shape (N, 2)."""
        file = self.file
        return np.stack([file.widths[samples], file.heights[samples]], axis=1).astype(np.int32)

    def spans(self, samples: NDArray[np.int64]) -> Spans:
        """Return where samples are in the file, for readers outside Python, and their checksums."""
        file = self.file
        offsets, sizes = file.spans(samples)
        return Spans(
            offsets=offsets,
            sizes=sizes,
            image=[f.name for f in file.fields if not f.is_scalar].index(self.image_field),
            # As bytes, since a copy of records would omit the padding between their fields.
            records=file.metadata.view(np.uint8).reshape(len(file), -1)[samples],
            checksums=None if self.checksums is None else self.checksums[samples],
        )

    def read(self, sample: int) -> Encoded:
        """Return the stored bytes, checked against the manifest's checksum if there is one.

        Raises:
            BadSampleError: the bytes changed, or a JPEG header does not match the metadata.
            BadDataError: the file was truncated while in use.
            StorageError: the system cannot read it.
        """
        file = self.file
        if self.checksums is None:
            data = file.payload(sample, self.image_field)
        else:
            payloads = file.payloads(sample)
            if file.checksum(sample, payloads) != self.checksums[sample]:
                raise BadSampleError(
                    sample, self.name(sample), "its bytes do not match the manifest's checksum"
                )
            data = payloads[self.image_field]
        return Encoded(
            data=data,
            kind="raw" if file.modes[sample] == RAW else "file",
            width=int(file.widths[sample]),
            height=int(file.heights[sample]),
        )

    def decode(self, sample: int) -> NDArray[np.uint8]:
        """Return pixels of shape (H, W, 3), RGB.

        Raises:
            BadSampleError: as for ``read``, or the decoder refuses the bytes or warns about them.
        """
        encoded = self.read(sample)
        shape = (encoded.height, encoded.width, 3)
        if encoded.kind == "raw":
            return np.frombuffer(encoded.data, np.uint8).reshape(shape).copy()
        try:
            pixels = decode_image(encoded.data, apply_exif=False, max_pixels=self._max_pixels)
        except DecodeError as error:
            raise BadSampleError(sample, self.name(sample), error.reason) from None
        if pixels.shape != shape:
            reason = f"decodes to shape {pixels.shape}, but the metadata says {shape}"
            raise BadSampleError(sample, self.name(sample), reason)
        return pixels

    def check_unchanged(self) -> None:
        """Check that the file is still the one that was opened; loaders do so once per epoch.

        Raises:
            BadDataError: it was replaced, removed, truncated or modified.
        """
        self.file.check_unchanged()

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file is not None:
            self._file.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_opening": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._opening = threading.Lock()


def _origin(described: manifest.Manifest | None) -> str | None:
    """Return the digest of the folder that a file was made from; None if another program made it.

    The source hash that other programs write may cover several splits of a dataset.
    """
    if described is None or not str(described.made_by.get("program")).endswith(" prepare"):
        return None
    return described.source_hash


def _fields_read(file: BetonFile) -> str:
    image, label = file.image_field.name, file.label_field.field
    read = f"image {image!r}" + ("" if label is None else f", label {label.name!r}")
    return read if len(file.fields) > 1 + (label is not None) else ""


def _unlike_the_first(file: BetonFile) -> tuple[str, str]:
    """Return suffixes that identify image and label field; empty for the first of their kind.

    Earlier versions always took the first ones, and their runs and caches identify only the file.
    """
    label = file.label_field.field
    images = (field.name for field in file.fields if field.kind is Kind.IMAGE)
    numbers = (field.name for field in file.fields if field.kind is Kind.INT)
    arrays = (field.name for field in file.fields
              if field.dtype == np.int8 and len(field.shape) == 1)  # fmt: skip
    first = next(numbers, None) or next(arrays, None)
    image, taken = file.image_field.name, None if label is None else label.name
    return (
        "" if image == next(images) else f"-image={image}",
        "" if taken == first else f"-label={taken or ''}",
    )
