"""A small file system of its own, seen only by the programs that are put into its namespace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Mounted:
    """A tmpfs in a mount namespace that lives as long as this.

    Attributes:
        folder: where it is, inside the namespace.
        seen: the same folder, seen from here.
        namespace: to start programs in.
    """

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        script = 'mount -t tmpfs -o size="$1" tmpfs "$2" && echo ready && exec sleep 900'
        self._holder = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, "sh", str(size), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            self._holder.wait()
            pytest.skip("mount namespaces are not allowed here")
        self.folder = folder
        self.seen = Path(f"/proc/{self._holder.pid}/root{folder}")
        self.namespace = f"/proc/{self._holder.pid}/ns/mnt"

    def remount(self, options: str) -> None:
        """Change its options, e.g. ``ro`` or ``size=20m``."""
        enter = ["nsenter", f"--mount={self.namespace}", "mount", "-o", f"remount,{options}"]
        subprocess.run([*enter, str(self.folder)], check=True)

    def close(self) -> None:
        """The file system is gone."""
        self._holder.kill()
        self._holder.wait()


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Mounted]:
    """As ``Mounted``; skips, with the reason, where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    mount = Mounted(folder, size)
    try:
        yield mount
    finally:
        mount.close()
