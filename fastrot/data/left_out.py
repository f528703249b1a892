"""Counts of what else a dataset contains, so that nothing is left out silently.

Importing this module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

HIDDEN = "hidden"
NO_ENDING = "no ending"
DOTTED = "dotted"
BESIDE_SPLIT = "beside the split"
UNLISTED = "in no list"
NO_FILE = "no regular file"
NO_IMAGES = "folder without images"

_SHOWN = 8
_PICTURES = {
    *(".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jif", ".jpg_large", ".tga", ".ico", ".svg"),
    *(".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".orf", ".rw2", ".exr", ".pcx"),
}
"""Endings of images that cannot be read; they are named first."""


class LeftOut:
    """Counts of what is left out, by kind, with the first name of each kind as an example.

    A kind is a file extension in lower case (``.heic``) or one of the words above.

    Example:
        >>> left_out = LeftOut()
        >>> for name in ("b/2.heic", "a/1.heic", "notes"):
        ...     left_out.add_file(name)
        >>> str(left_out), left_out.counts
        ("2 .heic ('a/1.heic', ...), 1 no ending ('notes')", {'.heic': 2, 'no ending': 1})
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def __str__(self) -> str:
        """Return one line, images first, then by count; empty if nothing was left out."""
        kinds = sorted(
            self._found.items(), key=lambda each: (each[0] not in _PICTURES, -each[1][0], each[0])
        )
        shown = [
            f"{count:,} {kind} ({first!r}{', ...' if count > 1 else ''})"
            for kind, (count, first) in kinds[:_SHOWN]
        ]
        if len(kinds) > _SHOWN:
            rest = sum(count for _, (count, _) in kinds[_SHOWN:])
            shown.append(f"{rest:,} files of {len(kinds) - _SHOWN} more kinds")
        return ", ".join(shown)

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of each kind."""
        return {kind: count for kind, (count, _) in sorted(self._found.items())}

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """Count ``count`` of a kind; ``name`` is a path relative to the dataset."""
        before, first = self._found.get(kind, (0, name))
        self._found[kind] = before + count, min(first, name)

    def add_file(self, name: str) -> None:
        """Count a file under its extension."""
        self.add(os.path.splitext(name)[1].lower() or NO_ENDING, name)

    def add_all(self, others: Iterable[LeftOut], prefix: str = "") -> None:
        """Add the counts of others, with a prefix before their names."""
        for other in others:
            for kind, (count, first) in other._found.items():
                self.add(kind, prefix + first, count)
