"""On which addresses a process listens, as the kernel tells it."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def listening(pid: int) -> set[str]:
    """Addresses of the listening TCP sockets of a process; none once it has ended."""
    found = set()
    try:
        own = _socket_inodes(pid)
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in own:
                    found.add(_address(fields[1].partition(":")[0]))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def _socket_inodes(pid: int) -> set[str]:
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:  # closed in between
            continue
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    return inodes


def _address(packed_hex: str) -> str:
    """The kernel writes an address as 32-bit words in the machine's byte order."""
    packed = bytes.fromhex(packed_hex)
    words = [packed[at : at + 4][::-1] for at in range(0, len(packed), 4)]
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, b"".join(words))
