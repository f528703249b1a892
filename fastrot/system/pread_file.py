"""A file that is read by position: thread-safe, fork-safe, and never mapped into memory.

If a mapped file is truncated, SIGBUS kills the process; here a short read is an error that names
the file and the offset.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrot.errors import BadDataError, StorageError, UsageError

_RETRIED = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT})
_PAUSES_SECONDS = (0.1, 0.5, 2.0)
_MAX_READ_BYTES = 2**30  # Linux stops at 2 GiB - 4 KiB per call


class FileIdentity(NamedTuple):
    """Properties that change when a file is replaced, truncated or written to."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """Return the identity that a stat result describes."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class PreadFile:
    """A regular file, opened for reading until ``close()``.

    Args:
        path: the file.

    Attributes:
        path: path of the file.
        identity: identity of the file when it was opened.

    Raises:
        UsageError: there is no such file.
        BadDataError: the file is not regular.
        StorageError: the system cannot open it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reopening = threading.Lock()
        self._descriptor, self.identity = _open(path)

    @property
    def descriptor(self) -> int:
        """Return the file descriptor; -1 once the file is closed."""
        return self._descriptor

    def read(self, offset: int, size: int) -> bytes:
        """Read the ``size`` bytes at ``offset``.

        Raises:
            BadDataError: the file ends too early.
            StorageError: the system cannot read the bytes, even after some retries.
        """
        with contextlib.suppress(OSError):  # reported, or tried again, below
            data = os.pread(self._descriptor, size, offset)
            if len(data) == size:
                return data
        buffer = bytearray(size)
        self._fill(offset, memoryview(buffer))
        return bytes(buffer)

    def read_array(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Read like ``read``, into a new array of shape (size,)."""
        array = np.empty(size, np.uint8)
        self._fill(offset, array.data)
        return array

    def check_unchanged(self, since: FileIdentity | None = None) -> None:
        """Check that the path still leads to the opened file, and that the file is unchanged.

        Args:
            since: identity to compare with; None: that of the opening.

        Raises:
            BadDataError: the file was replaced, removed, truncated or written to.
        """
        try:
            now = FileIdentity.of(os.stat(self.path))
        except OSError as error:
            raise BadDataError(
                f"{self.path}: gone while in use ({error.strerror}); put it back and resume"
            ) from None
        since = since or self.identity
        if now != since:
            changed = ", ".join(
                f"{name} {before} -> {after}"
                for name, before, after in zip(now._fields, since, now, strict=True)
                if before != after
            )
            raise BadDataError(
                f"{self.path}: changed while in use ({changed}); "
                "put the same file back and resume, or start again"
            )

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with self._reopening:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _fill(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            count = self._read_some(offset + done, view[done : done + _MAX_READ_BYTES])
            if not count:
                raise BadDataError(
                    f"{self.path}: ends at byte {offset + done}, but had {self.identity.size} "
                    "bytes when it was opened: cut while in use; restore it from a copy"
                )
            done += count

    def _read_some(self, offset: int, view: memoryview) -> int:
        for pause in (*_PAUSES_SECONDS, None):
            try:
                return os.preadv(self._descriptor, [view], offset)
            except OSError as error:
                if error.errno not in _RETRIED or pause is None:
                    raise StorageError(
                        f"{self.path}: reading {len(view)} bytes at byte {offset} failed "
                        f"({error.strerror}); check the disk or the network file system"
                    ) from error
            time.sleep(pause)
            self._reopen()
        raise AssertionError("the last attempt returns or raises")

    def _reopen(self) -> None:
        # A handle of a network file system becomes stale when the server loses it; only a new one
        # helps. It replaces the old one under its number, from which other threads may be reading.
        with self._reopening:
            try:
                fresh, identity = _open(self.path)
            except (StorageError, UsageError):
                return  # the next attempt to read reports it
            try:
                if identity == self.identity and self._descriptor >= 0:
                    os.dup2(fresh, self._descriptor, inheritable=False)
            finally:
                os.close(fresh)
        self.check_unchanged()


def _open(path: Path) -> tuple[int, FileIdentity]:
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path}: no such file; make one with fastrot prepare") from None
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be opened ({error.strerror}); check its permissions"
        ) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise BadDataError(f"{path}: not a regular file; name a .beton file")
    return descriptor, FileIdentity.of(status)
