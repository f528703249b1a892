"""A writer of ``.beton`` files that are complete or absent, and that FFCV 1.0.2 can read.

Samples are appended in order by one process, which alone decides where data goes: the same
samples give the same bytes, however many processes encode them. Everything goes to
``X.beton.tmp-<host>-<pid>`` beside the output; ``commit`` reads the structure back, writes the
manifest and renames (see ``manifest.py`` for the order and the state after a crash).

A writer with a ``journal`` can be resumed: each full page is synced and its samples are recorded
in ``X.beton.journal``; ``resume=True`` with the same journal identity continues after the last
recorded page (at most one page is lost). ``num_samples`` is then the number of samples already
written, and ``last_position`` the position that the caller gave with the last one::

    with BetonWriter(path, fields, capacity=len(sources), journal=identity, resume=True) as writer:
        for position in range(writer.last_position + 1, len(sources)):
            writer.add(encode(sources[position]), labels[position], position=position)
        writer.commit(class_names=names)
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrot.data.beton import manifest
from fastrot.data.beton.format import (
    ALLOCATION,
    DEFAULT_PAGE_SIZE,
    HEADER,
    MAX_FIELDS,
    VERSION,
    Field,
    align_up,
    check_page_size,
    metadata_start,
    pack_descriptors,
    record_dtype,
)
from fastrot.data.beton.journal import Journal, Plan, recover, row_dtype, write_all
from fastrot.data.beton.labels import check_label_numbers
from fastrot.data.beton.manifest import Manifest
from fastrot.data.beton.pages import Pages, PageWriter
from fastrot.data.beton.reader import BetonFile, sample_checksum
from fastrot.data.beton.values import POINTER, encode_sample
from fastrot.errors import BadDataError, FastrotError, MismatchError, StorageError, UsageError
from fastrot.system.files import sync_folder
from fastrot.system.lock import RunLock

_UNTOUCHED = (
    "free space or check permissions and try again; a file that was there before is untouched"
)


class BetonWriter:
    """Writes one file; use it as a context manager and call ``commit`` at the end.

    Leaving the block without ``commit`` removes what was written, or with a ``journal`` keeps it
    for another writer. An existing file at ``path`` is unchanged until ``commit``.

    Args:
        path: the file to write; its folder must exist.
        fields: the fields in file order.
        capacity: largest number of samples; space for their metadata is left before the data.
        page_size: size of a page in bytes, a power of two; a sample must fit into one page.
        journal: identity of this conversion (its sources and settings); None: not resumable.
        resume: continue where a writer with the same journal identity was stopped, if any.

    Attributes:
        num_samples: number of samples added so far, including those before a resume.
        last_position: the ``position`` of the last sample, or -1 if there is none.

    Raises:
        UsageError: fields, capacity or page size break a rule, or the folder does not exist.
        MismatchError: another process is writing this file, or the unfinished file to resume
            belongs to another conversion.
        StorageError: the system cannot write there.
    """

    def __init__(
        self,
        path: str | Path,
        fields: Sequence[Field],
        *,
        capacity: int,
        page_size: int = DEFAULT_PAGE_SIZE,
        journal: str | None = None,
        resume: bool = False,
    ) -> None:
        self.path, self.fields = Path(path), tuple(fields)
        self.num_samples, self.last_position = 0, -1
        self._check_arguments(capacity, page_size, journal, resume)
        self._capacity = capacity
        record = record_dtype(self.fields)
        assert record.fields is not None
        self._offsets = [record.fields[str(i)][1] for i in range(len(self.fields))]
        self._record_size = record.itemsize
        metadata_end = metadata_start(len(self.fields)) + capacity * record.itemsize
        self._pages = Pages(align_up(metadata_end, page_size), page_size)
        self._flushed = 0  # samples in the pages before the one that is being filled
        self._rows: NDArray[Any] = np.zeros(capacity, row_dtype(self.fields))
        self._descriptor, self._committed = -1, False
        self._journal: Journal | None = None
        self._disk: PageWriter | None = None  # from the first full page on
        self._temporary = self.path.with_name(
            f"{self.path.name}.tmp-{socket.gethostname()}-{os.getpid()}"
        )
        self._journal_path = self.path.with_name(f"{self.path.name}.journal")
        with self._storage("cannot be written", _UNTOUCHED):
            lock = self.path.with_name(f"{self.path.name}.lock")
            self._lock = RunLock(lock, what=str(self.path))
        try:
            with self._storage("cannot be written", _UNTOUCHED):
                self._start(journal, resume)
        except BaseException:
            self._close_files()
            self._lock.release()
            raise

    def add(self, *values: Any, position: int = 0) -> int:
        """Append one sample; the file is unchanged if the sample is refused.

        Args:
            values: one for each field, see ``values.encode_value``; for an image the bytes
                of a JPEG, or an array of shape (H, W, 3), uint8, to be stored raw.
            position: the caller's own counter, kept for ``last_position``.

        Returns:
            The id of the sample.

        Raises:
            BadDataError: a value does not fit its field, or FFCV cannot read a JPEG.
            UsageError: there are more samples than the capacity, or the writer is closed.
            StorageError: the disk is full, or the system reports another failure.
        """
        sample = self.num_samples
        if self._descriptor < 0:
            raise UsageError(f"{self.path}: this writer is closed; make a new one")
        if sample == self._capacity:
            raise UsageError(f"{self.path}: more than capacity={sample} samples; raise capacity")
        record = bytearray(self._record_size)
        try:
            data, columns = encode_sample(self.fields, self._offsets, values, record)
        except ValueError as error:
            raise BadDataError(
                f"{self.path}: sample {sample}, {error}; correct or omit this sample"
            ) from None
        self._make_room(data)
        pointers = self._pages.place(data)
        for column, pointer in zip(columns, pointers, strict=True):
            POINTER.pack_into(record, column, pointer)
        row = self._rows[sample]
        row["record"] = np.frombuffer(record, np.uint8)
        row["ptr"] = pointers
        row["size"] = [len(piece) for piece in data]
        row["checksum"] = sample_checksum(bytes(record), data)
        row["position"] = position
        self.num_samples, self.last_position = sample + 1, position
        return sample

    def commit(
        self,
        *,
        class_names: Sequence[str] | None = None,
        source_hash: str | None = None,
        made_by: Mapping[str, manifest.Scalar] | None = None,
    ) -> Manifest:
        """Finish the file, check it, and put it and its manifest in place.

        Args:
            class_names: one per class; labels must be less than their number.
            source_hash: identity of what the file was made from.
            made_by: how it was made: program, version, settings.

        Returns:
            The manifest that was written.

        Raises:
            UsageError: there are no samples.
            BadDataError: a label has no class name.
            MismatchError: the lock was lost to another process.
            StorageError: the disk is full, or the system reports another failure.
        """
        if not self.num_samples:
            raise UsageError(f"{self.path}: no samples were added; a .beton file has at least one")
        with self._storage("cannot be finished", _UNTOUCHED):
            self._write_tables()
            with BetonFile.open(self._temporary) as file:
                if class_names is not None:
                    check_label_numbers(file, len(class_names))
                described = Manifest(
                    structure=file.structure,
                    beton_bytes=file.identity.size,
                    checksums=self._rows["checksum"][: self.num_samples].copy(),
                    class_names=None if class_names is None else tuple(class_names),
                    source_hash=source_hash,
                    made_by=dict(made_by or {}),
                )
            self._lock.assert_held()
            manifest.stage(self.path, described)
            os.rename(self._temporary, self.path)
        self._committed = True
        with self._storage("is in place, but not tidied up", "read it as usual, or write again"):
            sync_folder(self.path.parent)
            manifest.promote(self.path)
            self._journal_path.unlink(missing_ok=True)
            self._close_files()
        return described

    def discard(self) -> None:
        """Discard what was written, including by a stopped writer before; then call ``close``.

        Raises:
            OSError: the journal cannot be removed.
        """
        self._journal_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release everything; see the class for an end without ``commit``. Safe to call twice."""
        self._close_files()
        with contextlib.suppress(OSError, FastrotError):  # the first failure is the one to report
            if not self._committed:
                self._lock.assert_held()
                if manifest.is_staged(self.path):
                    manifest.promote(self.path)
                if not self._journal_path.exists():
                    self._temporary.unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> BetonWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_arguments(
        self, capacity: int, page_size: int, journal: str | None, resume: bool
    ) -> None:
        try:
            check_page_size(page_size)
        except ValueError as error:
            raise UsageError(f"{self.path}: {error}") from None
        names = {field.name for field in self.fields}
        if len(names) != len(self.fields) or not 1 <= len(names) <= MAX_FIELDS:
            raise UsageError(f"{self.path}: needs 1 to {MAX_FIELDS} fields of different names")
        if large := [field.name for field in self.fields if field.nbytes > page_size]:
            raise UsageError(f"{self.path}: arrays of {large} exceed a page of {page_size} bytes")
        if capacity < 1:
            raise UsageError(f"{self.path}: capacity={capacity} must be at least 1")
        if resume and journal is None:
            raise UsageError(f"{self.path}: resume=True needs the identity of a journal")
        if not self.path.parent.is_dir():
            raise UsageError(f"{self.path}: no folder {self.path.parent}; make it first")
        if self.path.is_dir():
            raise UsageError(f"{self.path}: is a folder; name a file to write")

    @contextlib.contextmanager
    def _storage(self, what: str, advice: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.path}: {what} ({error.strerror}); {advice}") from error

    def _start(self, identity: str | None, resume: bool) -> None:
        if manifest.is_staged(self.path):
            manifest.promote(self.path)
        plan = Plan.of(identity or "", self.fields, self._capacity, self._pages.page_size)
        if resume and self._take_up(plan):
            return
        leftovers = re.compile(re.escape(self.path.name) + r"\.(tmp-.+|journal)")
        for name in [entry.name for entry in self.path.parent.iterdir()]:
            if leftovers.fullmatch(name):
                (self.path.parent / name).unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._temporary, flags, 0o666)
        if identity is not None:
            self._journal = Journal.create(self._journal_path, plan, self._temporary)

    def _take_up(self, plan: Plan) -> bool:
        """Resume the unfinished file that the journal describes; return whether there was one."""
        recovered = recover(self._journal_path, self.fields)
        if recovered is None:
            return False
        if difference := plan.difference(recovered.plan):
            raise MismatchError(
                f"{self._journal_path}: the unfinished file belongs to another conversion "
                f"({difference}); use the settings of that one, or start without --resume"
            )
        temporary = self.path.with_name(Path(recovered.temporary).name)
        if temporary.name != recovered.temporary or not temporary.name.startswith(
            f"{self.path.name}.tmp-"
        ):
            return False  # a damaged journal must not lead to another file
        try:
            self._descriptor = os.open(temporary, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        self._temporary = temporary
        # Pages were synced before they were recorded; the last one is read back nevertheless.
        while recovered.blocks:
            index, digest, _ = recovered.blocks[-1]
            if self._pages.is_on_disk(self._descriptor, index, digest):
                break
            recovered.drop_last()
        for _, _, rows in recovered.blocks:
            self._rows[self.num_samples : self.num_samples + len(rows)] = rows
            self.num_samples += len(rows)
            self._pages.index += 1
        self._flushed = self.num_samples
        if self.num_samples:
            self.last_position = int(self._rows["position"][self.num_samples - 1])
        os.ftruncate(self._descriptor, self._pages.offset if self._pages.index else 0)
        self._journal = recovered.reopen(self._journal_path)
        return True

    def _make_room(self, data: Sequence[memoryview]) -> None:
        """Start a new page if the data of the next sample does not fit into the current one."""
        space = self._pages.space(data)
        if space > self._pages.page_size:
            raise BadDataError(
                f"{self.path}: sample {self.num_samples} has {space} bytes, more than a page of "
                f"{self._pages.page_size}; choose a larger page size or smaller images"
            )
        if self._pages.used + space > self._pages.page_size:
            with self._storage("cannot be written", _UNTOUCHED):
                self._flush_page()

    def _flush_page(self) -> None:
        self._lock.assert_held()
        if self._disk is None:
            self._disk = PageWriter(self._descriptor, self._journal)
        self._disk.write(self._pages, self._rows[self._flushed : self.num_samples])
        self._flushed = self.num_samples

    def _write_tables(self) -> None:
        """Write the last page, allocation table and metadata, and the header at the very end."""
        if self._pages.used:
            self._flush_page()
        if self._disk is not None:
            self._disk.wait()
        rows = self._rows[: self.num_samples]
        start = metadata_start(len(self.fields))
        metadata = rows["record"].tobytes()
        table = self._pages.offset if self._pages.index else start + len(metadata)
        entries = np.zeros(rows["ptr"].shape, ALLOCATION)
        entries["sample"] = np.arange(len(rows), dtype=np.uint64)[:, None]
        entries["ptr"], entries["size"] = rows["ptr"], rows["size"]
        header = np.zeros((), HEADER)
        header["version"], header["num_fields"] = VERSION, len(self.fields)
        header["page_size"], header["num_samples"] = self._pages.page_size, len(rows)
        header["alloc_table_ptr"] = table
        write_all(self._descriptor, entries.tobytes(), table)
        os.ftruncate(self._descriptor, table + entries.nbytes)
        write_all(self._descriptor, metadata, start)
        write_all(self._descriptor, header.tobytes() + pack_descriptors(self.fields), 0)
        os.fsync(self._descriptor)

    def _close_files(self) -> None:
        if self._disk is not None:
            self._disk.close()
            self._disk = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._journal is not None:
            self._journal.close()
            self._journal = None
