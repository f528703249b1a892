"""The system calls of a run that change the disk."""

from __future__ import annotations

import re

CALLS = (
    *("mkdir", "openat", "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "rename"),
    *("renameat", "renameat2", "unlink", "unlinkat", "rmdir", "link", "symlink", "flock"),
)


def changes(trace: str) -> list[tuple[str, int]]:
    """Calls of a trace that change the disk: name, and its number among those of this name."""
    counts = dict.fromkeys(CALLS, 0)
    points = []
    for line in trace.splitlines():
        match = re.match(r"[\d.]+ (\w+)\((.*)", line)
        if match is None or match[1] not in counts:
            continue
        call, rest = match[1], match[2]
        counts[call] += 1
        reads = call == "openat" and not re.search(r"O_WRONLY|O_RDWR|O_CREAT", rest)
        if not (reads or rest.startswith(("1,", "2,"))):  # to the terminal
            points.append((call, counts[call]))
    return points
