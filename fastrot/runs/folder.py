"""The folder of a run: who owns it, what it holds besides checkpoints, and the state of the run.

A run folder holds ``config.yaml`` (resolved), ``status.json``, ``environment.json``,
``metrics.jsonl`` and ``samples.jsonl``, ``tensorboard/`` and ``checkpoints/``. One process owns it
(``run.lock``).
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shlex
import shutil
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fastrot.errors import MismatchError, StorageError, UsageError
from fastrot.system.files import (
    allow_open_files,
    is_temporary,
    make_folder,
    read_regular,
    sync_folder,
    write_atomic,
)
from fastrot.system.jsonl import parse_json_line, read_object
from fastrot.system.lock import LEASE_SECONDS, RunLock, lock_holder, silent_seconds

State = Literal["running", "done", "failed", "preempted"]
# Files that a kill can leave half-written, by their exact names: nobody else's files match.
_WRITTEN_ATOMICALLY = ("status.json", "config.yaml", "environment.json", "run.lock")
_PROBE = re.compile(r"\.[0-9a-f]{8}\.probe")
_FOLDER_MODE = 0o775  # before the umask
_FILES_OF_A_RUN = 32  # its lock, logs and checkpoints, and the data it reads
_UNFINISHED = ".step-*.tmp-*"  # a checkpoint that was being written or removed


class RunFolder:
    """The folder of one run: locked by this process, and proven writable before the first step.

    Args:
        path: the folder; created if missing, following the umask but never world-writable.
        resume: resume the run that is there; without it, a folder in use is refused.

    Attributes:
        path: the folder.
        run_id: 16 hex digits, drawn when the run begins and kept when it is resumed.
        killed: result of ``how_killed`` before this process took the folder over.

    Raises:
        UsageError: the path is a file, or holds something and ``resume`` is false.
        MismatchError: another process holds the run, others could have planted files in it, or
            this process may open too few files.
        StorageError: the folder cannot be created or written.

    Example:
        >>> import tempfile
        >>> with RunFolder(Path(tempfile.mkdtemp()) / "run") as folder:
        ...     folder.write_status("running", step=0, epoch=0)
        ...     folder.path.name
        'run'
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        self.path = Path(path)
        allow_open_files(_FILES_OF_A_RUN)
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{path}: is a file, but a run needs a folder; choose another --out")
        lock = self.path / "run.lock"
        self.killed = how_killed(self.path)
        if self.killed or not lock.exists():
            self._refuse_if_used(resume=resume)  # before writing to what is not ours
        try:
            make_folder(self.path, mode=_FOLDER_MODE)
            self._lock = RunLock(lock)
            try:
                self._refuse_if_used(resume=resume)
                _probe(self.path, resume=resume)
                self._reap()
                self.run_id = read_run_id(self.path) or secrets.token_hex(8)
            except BaseException:
                self._lock.release()
                raise
        except OSError as error:
            raise StorageError(
                f"{path}: cannot be written ({error.strerror or error}); "
                "free space, fix the permissions, or choose another --out"
            ) from None

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Return the file of the metrics, with one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Return the file of the sample ids of each step, or of their hashes."""
        return self.path / "samples.jsonl"

    def write_config(self, text: str) -> None:
        """Write the resolved configuration to ``config.yaml``.

        Raises:
            StorageError: it cannot be written.
        """
        self._write("config.yaml", text)

    def write_status(
        self,
        state: State,
        *,
        step: int,
        epoch: float,
        exit_code: int | None = None,
        message: str = "",
    ) -> None:
        """Replace ``status.json``, which tells other programs the state of the run.

        Args:
            state: running, done, failed or preempted.
            step: number of optimizer steps done.
            epoch: number of epochs done.
            exit_code: exit code of the process; None while it runs.
            message: one line for the user.

        Raises:
            StorageError: it cannot be written.
        """
        record = {
            "state": state,
            "step": step,
            "epoch": epoch,
            "exit_code": exit_code,
            "message": message,
            "run_id": self.run_id,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._write("status.json", json.dumps(record) + "\n")

    def assert_held(self) -> None:
        """Check that this process still owns the run, before a checkpoint is committed.

        Raises:
            MismatchError: the lock was lost (the process was stopped for too long).
        """
        self._lock.assert_held()

    def close(self) -> None:
        """Release the lock; safe to call twice."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _write(self, name: str, text: str) -> None:
        try:
            write_atomic(self.path / name, text.encode())
        except OSError as error:
            raise StorageError(
                f"{self.path / name}: cannot be written ({error.strerror or error}); "
                "the old file is untouched: free space and resume"
            ) from None

    def _contents(self) -> list[str]:
        """Return what the folder holds, without the lock and leftovers of a killed process."""
        if not self.path.is_dir():
            return []
        names = sorted(entry.name for entry in self.path.iterdir())
        return [name for name in names if name != "run.lock" and not _is_leftover(name)]

    def _reap(self) -> None:
        """Remove what a killed process left half-written; the lock proves that none is running."""
        left = [entry for entry in self.path.iterdir() if _is_leftover(entry.name)]
        for entry in [*left, *self.checkpoints.glob(_UNFINISHED)]:
            with contextlib.suppress(OSError):  # it does no harm
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _refuse_if_used(self, *, resume: bool) -> None:
        """Refuse folders that are not run folders, and runs that have something to lose."""
        contents = self._contents()
        if not contents:
            return
        if not _is_run(self.path):
            raise UsageError(
                f"{self.path}: holds {contents[0]} and is not a run folder; choose another --out"
            )
        if not resume and has_begun(self.path):
            raise UsageError(
                f"{self.killed or f'{self.path}: already holds a run'}; "
                "add --resume to continue it, or choose another --out"
            )


def read_status(path: str | Path) -> dict[str, Any]:
    """Return the record in ``status.json``; empty if it is missing or unreadable."""
    try:
        record = parse_json_line(read_regular(Path(path) / "status.json")) or {}
    except OSError:
        return {}
    numbers = record.get("step", 0), record.get("epoch", 0.0)
    return record if all(isinstance(number, int | float) for number in numbers) else {}


def how_killed(path: str | Path) -> str:
    """Return one line about a run whose process was killed; empty if it was not.

    Such a run has the status "running", while its lock names a process that no longer exists, or
    one on another machine that has shown no sign of life for a long time.
    """
    status, lock = read_status(path), Path(path) / "run.lock"
    holder = lock_holder(lock) if status.get("state") == "running" else None
    if holder is None or (holder.is_local and holder.is_running):
        return ""
    sign = f"process {holder.pid} on {holder.host} no longer exists"
    if not holder.is_local:
        silent = silent_seconds(lock)
        if silent < 5 * LEASE_SECONDS:
            return ""
        sign = f"no sign of process {holder.pid} on {holder.host} for {silent / 60:.0f} minutes"
    step = int(status.get("step", 0))
    last = f"its last checkpoint is at step {step}" if step else "it had no checkpoint yet"
    return f"{path}: the run was killed ({sign}; out of memory? check dmesg); {last}"


def read_run_id(path: str | Path) -> str | None:
    """Return the id of the run from its status, or else from its newest checkpoint."""
    known = read_status(path).get("run_id")
    if known:
        return str(known)
    for commit in sorted(Path(path).glob("checkpoints/step-*/COMMIT.json"), reverse=True):
        try:
            return str(json.loads(read_regular(commit))["run_id"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # damaged: try an older one
    return None


def read_imported(path: str | Path) -> dict[str, Any]:
    """Return what ``fastrot import`` recorded about the weights that the run began with.

    Empty if it began with random ones.
    """
    for file in sorted(Path(path).glob("checkpoints/step-*/state.json"), reverse=True):
        state = read_object(file)
        if not isinstance(state, str):  # else damaged: try an older one
            return dict(state.get("imported", {}))
    return {}


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("status.json", "config.yaml", "checkpoints"))


def has_begun(folder: Path) -> bool:
    """Return whether there is something to lose: a run has nothing before its first step."""
    return any(folder.glob("checkpoints/step-*")) or bool(read_status(folder).get("step", 0))


def _is_leftover(name: str) -> bool:
    return is_temporary(name, *_WRITTEN_ATOMICALLY) or _PROBE.fullmatch(name) is not None


def _probe(folder: Path, *, resume: bool) -> None:
    """Try what a checkpoint will do (create, sync, rename), and check who owns the folder.

    Raises:
        OSError: the file system refused.
        MismatchError: the run is to be resumed, but other users could have put files there.
    """
    probe = folder / f".{secrets.token_hex(4)}.probe"
    probe.mkdir(mode=0o700)
    try:
        write_atomic(probe / "probe", b"fastrot\n")
        sync_folder(folder)
        ours = probe.stat()
        usual = probe / "usual"
        usual.mkdir()
        others = stat.S_IWOTH | (stat.S_IWGRP & ~usual.stat().st_mode)
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    # Compare with a folder just made here: network file systems map owners, some have no modes.
    # If the umask lets the group write, the group is trusted with everything this user creates.
    for place in (folder, folder / "checkpoints") if resume else ():
        if not place.exists():
            continue
        theirs = place.stat()
        if theirs.st_uid != ours.st_uid or theirs.st_mode & ~ours.st_mode & others:
            name = shlex.quote(str(place))
            raise MismatchError(
                f"{place}: other users may write here, and a planted checkpoint would be resumed; "
                f"take the folder over with: chown $(id -u) {name} && chmod go-w {name}"
            )
