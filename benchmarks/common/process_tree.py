"""Resources that a process and its descendants have used so far, from /proc (Linux).

``getrusage`` does not suffice: it includes children only after they have exited, and the workers of
a data loader live as long as the loader.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")


class Memory(NamedTuple):
    """Bytes of memory of a process and its descendants, with shared pages counted once.

    Attributes:
        total: proportional set size, summed over the processes.
        file_pages: part of the total that is pages of mapped files, which the kernel can reclaim.
        peak: largest resident set, since its start, of the first process alone.
    """

    total: int
    file_pages: int
    peak: int


def cpu_seconds(root: int) -> float:
    """Return user and system time of a process, its living descendants, and those waited for."""
    ticks = sum(sum(int(field) for field in _stat(pid)[13:17]) for pid in _tree(root))
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_seconds(cores: Iterable[int]) -> float:
    """Return the total busy time of these cores, in seconds, with time stolen by other guests."""
    wanted = {f"cpu{core}" for core in cores}
    ticks = 0
    with suppress(OSError):
        for line in (_PROC / "stat").read_text().splitlines():
            name, *fields = line.split()
            if name in wanted:
                # user, nice, system, (idle, iowait,) irq, softirq, steal
                ticks += sum(int(fields[i]) for i in (0, 1, 2, 5, 6, 7))
    return ticks / os.sysconf("SC_CLK_TCK")


def storage_bytes(root: int) -> int:
    """Return the bytes that the living processes of a tree read from storage, not from a cache."""
    return sum(_fields(pid, "io").get("read_bytes", 0) for pid in _tree(root))


def memory(root: int) -> Memory:
    """Return the memory of the living processes of a tree."""
    total = file_pages = 0
    for pid in _tree(root):
        pages = _fields(pid, "smaps_rollup")
        total += 1024 * pages.get("Pss", 0)
        file_pages += 1024 * pages.get("Pss_File", 0)
    return Memory(total, file_pages, 1024 * _fields(root, "status").get("VmHWM", 0))


def _tree(root: int) -> list[int]:
    """Return the ids of the process and its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children.setdefault(int(stat[3]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat, from index 0; empty if the process has exited."""
    with suppress(OSError):
        # The second field is the program's name in parentheses, which may contain anything.
        before, _, after = (_PROC / str(pid) / "stat").read_text().rpartition(")")
        return [before.partition(" ")[0], "", *after.split()]
    return []


def _fields(pid: int, name: str) -> dict[str, int]:
    """Return the numbers in a file of /proc/PID whose lines are ``key: number ...``."""
    found = {}
    with suppress(OSError):  # the process has exited, or the kernel lacks that file
        for line in (_PROC / str(pid) / name).read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            number = value.split()[:1]
            if number and number[0].isdigit():
                found[key] = int(number[0])
    return found
