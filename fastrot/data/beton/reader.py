"""A reader of ``.beton`` files that does not trust them.

``BetonFile.open`` checks the whole structure (``check.py``); ``payload`` checks the bytes of one
sample. Nothing here decodes pixels or imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fastrot.data.beton import check
from fastrot.data.beton.fields import UNNAMED, LabelField, NamedFields, choose_image, choose_label
from fastrot.data.beton.format import (
    ALLOCATION,
    DESCRIPTOR,
    HEADER,
    JPEG,
    MAX_PIXELS,
    Field,
    Kind,
    metadata_start,
    record_dtype,
)
from fastrot.data.dataset import BadSampleError
from fastrot.errors import OutOfMemoryError, UsageError
from fastrot.kernels.decode.header import jpeg_header
from fastrot.system.pread_file import FileIdentity, PreadFile


class BetonFile:
    """An open, checked ``.beton`` file. Reading is thread-safe, also in forked processes.

    Use ``BetonFile.open``. All arrays are read-only.

    Attributes:
        path: path of the file.
        fields: the fields in file order.
        num_samples: n, the number of samples.
        page_size: size of a page in bytes.
        identity: identity of the file when it was opened.
        structure: xxh3_128 of everything except the pages: header, descriptors, metadata,
            allocation table.
    """

    path: Path
    fields: tuple[Field, ...]
    num_samples: int
    page_size: int
    identity: FileIdentity
    structure: str

    def __init__(self, path: Path, max_pixels: int, named: NamedFields) -> None:
        self.path, self._named = path, named
        self._file = PreadFile(path)
        self.identity = self._file.identity
        try:
            self._load(max_pixels)
        except MemoryError:
            self.close()
            raise OutOfMemoryError(
                f"{path}: too little memory for the metadata of a file of {self.identity.size} "
                "bytes; free some or use a larger machine"
            ) from None
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        max_pixels: int = MAX_PIXELS,
        named: NamedFields = UNNAMED,
    ) -> BetonFile:
        """Open a file and check its structure, in a tenth of a second for a million samples.

        Args:
            path: the file.
            max_pixels: refuse larger images.
            named: the image and label fields; those not given are chosen by name.

        Raises:
            UsageError: there is no such file.
            BadDataError: it breaks a rule of the format; the message says where.
            StorageError: the system cannot read it.
        """
        return cls(Path(path), max_pixels, named)

    def _load(self, max_pixels: int) -> None:
        size = self.identity.size
        head = self._file.read_array(0, min(size, HEADER.itemsize)).tobytes()
        header = check.check_header(self.path, size, head)
        self.page_size, self.num_samples = int(header["page_size"]), int(header["num_samples"])
        descriptors = self._file.read_array(
            HEADER.itemsize, int(header["num_fields"]) * DESCRIPTOR.itemsize
        ).tobytes()
        self.fields = check.check_fields(self.path, descriptors, self.page_size)
        check.check_sections(self.path, size, header, self.fields)
        record, table = record_dtype(self.fields), int(header["alloc_table_ptr"])
        rows = self._file.read_array(
            metadata_start(len(self.fields)), self.num_samples * record.itemsize
        )
        entries = self._file.read_array(table, size - table)
        digest = xxhash.xxh3_128(head + descriptors)
        digest.update(rows.data)
        digest.update(entries.data)
        self.structure = digest.hexdigest()
        self.metadata: NDArray[Any] = rows.view(record)
        self._sizes = check.check_structure(
            self.path, header, self.fields, self.metadata, entries.view(ALLOCATION), max_pixels
        )
        self._positions = {field.name: i for i, field in enumerate(self.fields)}
        for array in (self.metadata, *self._sizes.values()):
            array.flags.writeable = False

    @property
    def descriptor(self) -> int:
        """Return the file descriptor in this process, or -1 once the file is closed."""
        return self._file.descriptor

    @property
    def widths(self) -> NDArray[np.uint16]:
        """Return the widths of the images in pixels, of shape (n,)."""
        return self._image_column("width")

    @property
    def heights(self) -> NDArray[np.uint16]:
        """Return the heights of the images in pixels, of shape (n,)."""
        return self._image_column("height")

    @property
    def modes(self) -> NDArray[np.uint8]:
        """Return the modes of the images, 0 (JPEG) or 1 (raw), of shape (n,)."""
        return self._image_column("mode")

    @property
    def data_pointers(self) -> NDArray[np.uint64]:
        """Return the offsets in the file of the image data, of shape (n,)."""
        return self._image_column("ptr")

    @property
    def data_sizes(self) -> NDArray[np.uint64]:
        """Return the sizes of the image data in bytes, of shape (n,)."""
        return self.sizes(self.image_field.name)

    @cached_property
    def image_field(self) -> Field:
        """Return the image field.

        Raises:
            UsageError: there are several, and the user must name one.
            BadDataError: there is none.
        """
        return choose_image(self.fields, self._named, self.path)

    @cached_property
    def label_field(self) -> LabelField:
        """Return the label field, or why there is none.

        Raises:
            UsageError: the field that the user named holds no labels.
        """
        return choose_label(self.fields, self._named, self.path)

    def ints(self, name: str) -> NDArray[np.int64]:
        """Return all values of an Int field, of shape (n,)."""
        column: NDArray[np.int64] = self.metadata[str(self._position(name, Kind.INT))]
        return column

    def arrays(self, name: str) -> NDArray[Any]:
        """Return all values of an array field, of shape (n, *shape), with one read per value.

        Raises:
            UsageError: there is no such field, or it has no arrays.
            BadDataError: the file was truncated meanwhile.
            StorageError: the system cannot read it.
        """
        position = self._position(name)
        field = self.fields[position]
        if field.dtype is None:
            raise UsageError(f"{self.path}: field {name!r} has no arrays; read its values")
        rows = np.empty((self.num_samples, field.nbytes), np.uint8)
        pointers = self.metadata[str(position)]["ptr"]
        for sample in np.argsort(pointers, kind="stable").tolist():
            rows[sample] = self._file.read_array(int(pointers[sample]), field.nbytes)
        return rows.view(field.dtype).reshape(self.num_samples, *field.shape)

    def sizes(self, name: str) -> NDArray[np.uint64]:
        """Return each sample's bytes of data in a field that has data in pages, of shape (n,)."""
        position = self._position(name)
        if position not in self._sizes:
            raise UsageError(f"{self.path}: field {name!r} is a number and has no data")
        return self._sizes[position]

    def spans(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return offsets and sizes, of shape (N, F), for the F fields with data in pages."""
        columns = [str(i) for i, field in enumerate(self.fields) if not field.is_scalar]
        offsets = [self.metadata[column]["ptr"][samples] for column in columns]
        sizes = [self._sizes[int(column)][samples] for column in columns]
        return np.stack(offsets, axis=1), np.stack(sizes, axis=1)

    def payload(self, sample: int, field: str) -> bytes:
        """Return the stored bytes of one sample in a field that has data in pages.

        A JPEG is checked for its start and end markers, three components of 8 bits, and the width
        and height in the metadata; its pixels are not decoded here.

        Raises:
            BadSampleError: the bytes contradict the metadata.
            BadDataError: the file was truncated meanwhile.
            StorageError: the system cannot read it.
        """
        size = int(self.sizes(field)[self._row(sample)])
        position = self._positions[field]
        if not size:
            return b""
        row = self.metadata[str(position)][sample]
        data = self._file.read(int(row["ptr"]), size)
        if self.fields[position].kind is Kind.IMAGE and row["mode"] == JPEG:
            try:
                height, width = check_jpeg(data)
                if (width, height) != (row["width"], row["height"]):
                    raise ValueError(
                        f"JPEG of {width} x {height} pixels, but the metadata says "
                        f"{row['width']} x {row['height']}"
                    )
            except ValueError as error:
                raise BadSampleError(sample, sample_name(self.path, sample), str(error)) from None
        return data

    def payloads(self, sample: int) -> dict[str, bytes]:
        """Return the ``payload`` of every field that has data in pages, in field order."""
        names = [field.name for field in self.fields if not field.is_scalar]
        return {name: self.payload(sample, name) for name in names}

    def checksum(self, sample: int, payloads: dict[str, bytes]) -> int:
        """Return the xxh3_64 of a sample's metadata record and ``payloads``, as in the manifest."""
        return sample_checksum(self.metadata[self._row(sample)].tobytes(), payloads.values())

    def value(self, sample: int, field: str) -> Any:
        """Return the value of one sample in a field other than an image.

        Returns:
            Float: float. Int: int. Bytes: bytes. JSON: the parsed text. Array and tensor:
            a numpy array of the field's shape and dtype.

        Raises:
            BadSampleError: a JSON text is malformed.
            UsageError: the field is an image; use ``payload``.
        """
        position = self._position(field)
        kind, row = self.fields[position].kind, self._row(sample)
        if kind is Kind.IMAGE:
            raise UsageError(f"{self.path}: field {field!r} is an image; read its payload")
        if kind in (Kind.INT, Kind.FLOAT):
            return self.metadata[str(position)][row].item()
        data = self.payload(sample, field)
        if kind is Kind.BYTES:
            return data
        if kind is not Kind.JSON:
            spec = self.fields[position]
            return np.frombuffer(data, spec.dtype).reshape(spec.shape)
        try:
            if data.find(b"\0") != len(data) - 1:
                raise ValueError("must end at its only NUL byte")
            return json.loads(data[:-1].decode("utf-8"))
        except (ValueError, RecursionError) as error:  # also JSON and Unicode errors
            reason = f"field {field!r} is not a JSON text: {error}"
            raise BadSampleError(sample, sample_name(self.path, sample), reason) from None

    def check_unchanged(self, since: FileIdentity | None = None) -> None:
        """Check that the path still leads to the file that was opened, and that it is unchanged.

        Args:
            since: compare with this instead of ``identity``.

        Raises:
            BadDataError: it was replaced, removed, truncated or modified.
        """
        self._file.check_unchanged(since)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()

    def __enter__(self) -> BetonFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.num_samples

    def _image_column(self, part: str) -> NDArray[Any]:
        column: NDArray[Any] = self.metadata[str(self._positions[self.image_field.name])][part]
        return column

    def _position(self, name: str, kind: Kind | None = None) -> int:
        position = self._positions.get(name)
        if position is None or kind not in (None, self.fields[position].kind):
            wanted = f" of type {kind.name}" if kind is not None else ""
            known = ", ".join(f"{field.name} ({field.kind.name})" for field in self.fields)
            raise UsageError(f"{self.path}: no field {name!r}{wanted}; it has {known}")
        return position

    def _row(self, sample: int) -> int:
        if not 0 <= sample < self.num_samples:
            raise IndexError(f"sample {sample} is not in [0, {self.num_samples})")
        return sample


def sample_name(path: Path, sample: int) -> str:
    """Return the name of a sample for messages, ``FILE.beton sample 17``."""
    return f"{path} sample {sample}"


def check_jpeg(data: bytes | memoryview) -> tuple[int, int]:
    """Check that a JPEG is complete, and of a type that FFCV and every decoder here can read.

    Returns:
        Height and width in pixels.

    Raises:
        ValueError: it is incomplete or of another type; the message says why.
    """
    header = jpeg_header(data)
    if not header.ends_with_eoi:
        raise ValueError("truncated JPEG: no end marker in the last two bytes")
    if header.components != 3 or header.precision != 8:
        raise ValueError(
            f"JPEG with {header.components} components of {header.precision} bits; needs 3 of 8"
        )
    if header.process:
        raise ValueError(f"{header.process} JPEG; it must be baseline or progressive")
    return header.height, header.width


def sample_checksum(record: bytes, payloads: Iterable[bytes | memoryview]) -> int:
    """Return the xxh3_64 of a metadata record followed by the payloads in field order."""
    digest = xxhash.xxh3_64(record)
    for payload in payloads:
        digest.update(payload)
    return digest.intdigest()
