"""Files that are either complete or absent, whatever kills the process or the machine."""

from __future__ import annotations

import errno
import os
import re
import resource
import stat
from pathlib import Path
from typing import BinaryIO

from fastrot.errors import MismatchError

_OPEN_AT_START = 16
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp", re.DOTALL)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write ``data`` to ``path`` so that readers see the old file or the new one, never a part.

    A temporary file is written, synced and renamed to ``path``, and the folder is synced. A power
    cut may lose the rename, but a renamed file is never incomplete. The umask restricts ``mode``.

    Raises:
        OSError: as the system reports it; nothing is left behind and ``path`` is unchanged.
    """
    temporary = temporary_path(path)
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def temporary_path(path: Path) -> Path:
    """Return a new name beside ``path`` for a file that will replace it."""
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")


def is_temporary(name: str, *of: str) -> bool:
    """Return whether ``temporary_path`` made this name for one of the names ``of``."""
    match = _TEMPORARY.fullmatch(name)
    return match is not None and match[1] in of


def remove_temporaries(folder: Path, *of: str) -> None:
    """Remove what killed writers of these names left behind; no writer may be active.

    Raises:
        OSError: as the system reports it.
    """
    for entry in folder.glob(".*.tmp"):
        if is_temporary(entry.name, *of):
            entry.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (a rename belongs to the folder, not to the file).

    Raises:
        OSError: as the system reports it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder and its parents so that no power cut removes them.

    Args:
        folder: path of the folder; it may exist already.
        mode: mode of the folder itself, as for ``os.mkdir``.

    Raises:
        OSError: as the system reports it.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_folder(path.parent)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; any other kind is refused, since a pipe would block.

    Raises:
        OSError: as the system reports it, or the file is not regular.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """Read all bytes of a regular file; raises what ``open_regular`` raises."""
    with open_regular(path) as file:
        return file.read()


def allow_open_files(more: int) -> None:
    """Make room for ``more`` open files by raising the soft limit, up to the hard limit.

    Raises:
        MismatchError: the hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        needed = len(os.listdir("/proc/self/fd")) + more
    except OSError:  # no such folder, or no descriptor left to look into it
        needed = _OPEN_AT_START + more
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise MismatchError(
            f"{needed} open files are needed and {hard} allowed; allow more with "
            f"ulimit -n {max(1024, needed)} (in a container: --ulimit nofile=N), or lower "
            "data.workers"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
