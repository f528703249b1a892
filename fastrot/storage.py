"""Files that are either whole or absent, whatever kills the process or the machine."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put ``data`` at ``path`` so that a reader sees the old file or the new one, never half.

    Written beside, synced, renamed over, and the folder synced: after a power cut the rename
    may be lost, but a renamed file never has lost contents.

    Raises:
        OSError: as the system reports it; nothing is left behind and ``path`` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
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


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (a rename lives in the folder, not in the file).

    Raises:
        OSError: as the system reports it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder and its parents, durably: none of them vanishes with a power cut.

    Args:
        folder: there may be one already.
        mode: of the folder itself, as for ``os.mkdir``.

    Raises:
        OSError: as the system reports it.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_folder(path.parent)
