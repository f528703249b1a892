"""The lock that allows one process per run folder: ``run.lock``.

Two locks work together. An advisory ``flock`` excludes processes of the same machine (and of
others, on file systems that share it) without races, and the kernel drops it when its holder dies.
Some cluster file systems limit ``flock`` to one machine, so the file also names its holder and has
a heartbeat: a lock of another machine counts as held until ``LEASE_SECONDS`` after its last beat.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import tempfile
import threading
import time
import weakref
from dataclasses import asdict
from pathlib import Path

from fastrot.errors import MismatchError
from fastrot.system.files import remove_temporaries, temporary_path
from fastrot.system.process_identity import ProcessIdentity

HEARTBEAT_SECONDS = 10.0
LEASE_SECONDS = 60.0
_logger = logging.getLogger(__name__)
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_NO_LINK = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV}
# All records have this length, so that one replaces another in a single write: a process killed
# between two writes would leave a lock without a holder, and the next start would wait a lease.
_RECORD_BYTES = 1024


def lock_holder(path: Path) -> ProcessIdentity | None:
    """Return the process that holds a lock file, or left it when killed; None if none is named."""
    try:
        return _read(path)
    except OSError:
        return None


class RunLock:
    """Hold ``run.lock`` from construction to ``release()``.

    Args:
        path: the lock file; its folder must exist.
        what: what it protects, with its path, for messages; None: the run in the lock's folder.

    Raises:
        MismatchError: another process holds it; the message says which, and since when.
        OSError: the file cannot be created or written.
    """

    def __init__(self, path: Path, *, what: str | None = None) -> None:
        self.path = path
        self.what = what or f"the run in {path.parent}"
        self.holder = ProcessIdentity.of_this_process()
        self._stop = threading.Event()
        self._descriptor = self._acquire()
        _HELD.add(self)
        self._heart = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._heart.start()

    def assert_held(self) -> None:
        """Check that no other process took over the lock while this one was stopped for too long.

        Raises:
            MismatchError: another process did, or the file was removed; this one must stop writing.
        """
        holder = _read(self.path)
        if holder is None or holder.nonce != self.holder.nonce:
            now = f"now held by {holder.host}:{holder.pid}" if holder else "removed"
            raise MismatchError(
                f"the lock of {self.what} was lost ({now}); stopping before two processes write "
                "the same: resume once the other has ended"
            )

    def release(self) -> None:
        """Release the lock; safe to call twice, and without effect in a forked child."""
        if self._descriptor < 0:
            return
        self._stop.set()
        self._heart.join()
        with contextlib.suppress(OSError, MismatchError):
            self.assert_held()
            self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1
        _HELD.discard(self)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def _acquire(self) -> int:
        first_beat: float | None = None
        warned = False
        while True:
            descriptor, created = _open(self.path, self._record())
            keep = False
            try:
                if not _flock(descriptor, patient=created):
                    raise self._refusal(_read(self.path))
                if not _same_file(descriptor, self.path):
                    continue  # its holder released it between our open and our flock
                holder = None if created else _read(self.path)
                if created or (holder and holder.is_local and not holder.is_running):
                    self._claim(descriptor)
                    remove_temporaries(self.path.parent, self.path.name)
                    keep = True
                    return descriptor
                if holder and holder.is_local:
                    raise self._refusal(holder)  # only if flock does not work
                beat = os.fstat(descriptor).st_mtime
                if first_beat is not None and beat != first_beat:
                    raise self._refusal(holder)
                first_beat = beat
                if _now_of(self.path.parent) - beat > LEASE_SECONDS:
                    self._claim(descriptor)
                    time.sleep(1)  # another machine may claim it at the same moment; the last wins
                    self.assert_held()
                    keep = True
                    return descriptor
                if not warned:
                    warned = True
                    who = "an unknown process (the file is damaged)"
                    if holder:
                        who = f"{holder.host}:{holder.pid} since {holder.since}"
                    _logger.warning(
                        "%s: held by %s; waiting at most %d s for its heartbeat",
                        self.path,
                        who,
                        LEASE_SECONDS,
                    )
            finally:
                if not keep:
                    os.close(descriptor)
            time.sleep(0.05 if holder is None else 1)

    def _record(self) -> bytes:
        return json.dumps(asdict(self.holder)).encode().ljust(_RECORD_BYTES)

    def _claim(self, descriptor: int) -> None:
        os.pwrite(descriptor, self._record(), 0)
        os.fsync(descriptor)

    def _refusal(self, holder: ProcessIdentity | None) -> MismatchError:
        who = f"{holder.host}:{holder.pid} since {holder.since}" if holder else "another process"
        return MismatchError(
            f"{self.what} is held by {who}; wait for it or stop it, or choose another output"
        )

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # a full or unresponsive disk must not stop training
                os.utime(self._descriptor)


_HELD: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    # A forked loader worker shares the flock; if it outlived a killed parent, the run would stay
    # locked. Closing the child's descriptor does not release the parent's lock.
    for lock in _HELD:
        if lock._descriptor >= 0:
            os.close(lock._descriptor)
            lock._descriptor = -1


os.register_at_fork(after_in_child=_forget_in_child)


def _open(path: Path, record: bytes) -> tuple[int, bool]:
    """Open the lock file; return its descriptor and whether this call created it."""
    while True:
        if not os.path.lexists(path):
            descriptor = _create(path, record)
            if descriptor is not None:
                return descriptor, True
        with contextlib.suppress(FileNotFoundError):  # released in between: create it
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW), False


def _create(path: Path, record: bytes) -> int | None:
    """Create a lock file that names its holder from the first moment; None if one exists already.

    It is written under another name first: a link, unlike a rename, replaces nothing, even on NFS.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    temporary = temporary_path(path)
    descriptor = os.open(temporary, flags, 0o600)
    try:
        os.pwrite(descriptor, record, 0)
        os.fsync(descriptor)
        _flock(descriptor, patient=False)  # before anybody can see it
        try:
            os.link(temporary, path)
        except (FileExistsError, FileNotFoundError):  # another was first and may have removed ours
            if os.fstat(descriptor).st_nlink < 2:  # else NFS repeated a request that succeeded
                os.close(descriptor)
                return None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_LINK:
                raise
            with contextlib.suppress(FileExistsError):  # this file system has no links
                return os.open(path, flags, 0o600)
            return None
    finally:
        temporary.unlink(missing_ok=True)
    return descriptor


def _flock(descriptor: int, *, patient: bool) -> bool:
    """Try to take the lock; the file's creator waits longer than others, who only check it."""
    deadline = time.monotonic() + (5 if patient else 0.2)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            return True  # this file system has no flock: the content of the file decides


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> ProcessIdentity | None:
    """Read the holder; None if the file is missing, empty or not a lock."""
    try:
        return ProcessIdentity(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return None


def silent_seconds(path: Path) -> float:
    """Return the seconds since the last heartbeat of a lock file; 0 if that is unknown."""
    try:
        return max(0.0, _now_of(path.parent) - path.stat().st_mtime)
    except OSError:
        return 0.0


def _now_of(folder: Path) -> float:
    """Return the file system's time, with which heartbeats are compared: clocks may differ."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
        file.flush()
        return os.fstat(file.fileno()).st_mtime
