"""The identity of a process, by which others on this machine or elsewhere recognise it."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """The permanent identity of a process: no reused process id and no reboot makes another equal.

    Attributes:
        host: name of its machine.
        pid: process id on that machine.
        boot_id: id of the kernel's current boot; empty if unknown.
        process_start: start time in clock ticks since boot; empty if unknown.
        since: when this description was made, ISO 8601.
        nonce: distinguishes two descriptions of the same process.
        pid_space: namespace of ``pid``; empty if unknown.
    """

    host: str
    pid: int
    boot_id: str
    process_start: str
    since: str
    nonce: str
    pid_space: str = ""

    @classmethod
    def of_this_process(cls) -> ProcessIdentity:
        """Describe the calling process."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            boot_id=_boot_id(),
            process_start=_process_start(os.getpid()),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            nonce=secrets.token_hex(8),
            pid_space=_pid_space(),
        )

    @property
    def is_local(self) -> bool:
        """Return whether the process id can be looked up here (same host name, no reboot since)."""
        # Containers of one host may share its name and boot id, but not its process ids.
        where = (socket.gethostname(), _boot_id(), _pid_space())
        return (self.host, self.boot_id, self.pid_space or where[2]) == where

    @property
    def is_running(self) -> bool:
        """Return whether this local process still exists; its pid may have been reused since."""
        return bool(self.process_start) and _process_start(self.pid) == self.process_start


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot; empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
