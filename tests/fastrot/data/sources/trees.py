"""Folders of files that tests only list."""

from __future__ import annotations

from pathlib import Path


def tree(root: Path, *names: str) -> Path:
    """Write a file under each name, as long as the name is; return the folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root
