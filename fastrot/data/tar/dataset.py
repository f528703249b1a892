"""Tar shards as a dataset: members are read by position on demand, never extracted.

Importing this module does not import torch.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastrot.data.image_files import ImageFiles
from fastrot.data.images.decode import JPEG_SIGNATURE, DecodeError, measure
from fastrot.data.labels import Labels
from fastrot.data.tar.shards import Shards, count_beside, find_shards, list_shards
from fastrot.system.pread_file import PreadFile

_OPEN_FILES = 128  # of the 1,024 that a process may usually have
_HEADER_BYTES = 2**14


class TarDataset(ImageFiles):
    """The images of tar shards; see the ``Dataset`` contract and ``shards.py``.

    EXIF orientation is applied. The digest covers names, offsets, sizes and labels, so opening
    reads only headers. If an image is replaced by another of exactly the same size, a resumed run
    does not notice. A ``.beton`` file has checksums and therefore no such gap.

    Opening takes 10 to 20 microseconds and one seek per member, in every process: half a minute for
    ImageNet in memory, much more from a cold disk. A ``.beton`` file opens at once.

    Args:
        path: a ``.tar`` file, a folder of them, or a pattern like ``shard-{000..009}.tar``.

    Raises:
        UsageError: the files do not exist.
        BadDataError: a file is damaged or has members that no dataset needs.
        StorageError: the system cannot read them.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._shards: Shards = list_shards(find_shards(path))
        self.labels: Labels = self._shards.labels
        self.class_names: tuple[str, ...] | None = None
        self.unlabelled, self.fields = self._shards.unlabelled, ""
        left_out = self._shards.left_out
        if self.path.is_dir():
            left_out.add_all([count_beside(self.path)])
        self.left_out = str(left_out)
        self.digest = self.origin = self._shards.digest
        self.byte_sizes = self._shards.sizes
        self.stored_bytes = int(self.byte_sizes.sum())
        super().__init__(np.zeros((len(self._shards.names), 2), np.int32))
        self._files = _OpenFiles(self._shards)

    def name(self, sample: int) -> str:
        """Return ``SHARD.tar: MEMBER``, escaped if it would not print on one line."""
        shards = self._shards
        name = f"{shards.paths[shards.shard[sample]]}: {shards.names[sample]}"
        return name if name.isprintable() else repr(name)

    def check_unchanged(self) -> None:
        """Check that the shards have not changed since opening; loaders do this once per epoch.

        Raises:
            BadDataError: one was replaced, removed, truncated or written to.
        """
        for shard in range(len(self._shards.paths)):
            with self._files.borrow(shard) as file:
                file.check_unchanged()

    def _measure(self, sample: int) -> tuple[int, int]:
        """Read width and height from the start of the member, or from all of it if needed.

        The start suffices only for a JPEG: other formats may store the orientation at their end.
        """
        size = int(self._shards.sizes[sample])
        if size > _HEADER_BYTES:
            start = self._load(sample, _HEADER_BYTES)
            if start.startswith(JPEG_SIGNATURE):
                try:
                    return measure(start)[:2]
                except DecodeError:
                    pass
        return measure(self._load(sample))[:2]

    def _load(self, sample: int, limit: int | None = None) -> bytes:
        shards = self._shards
        size = int(shards.sizes[sample])
        with self._files.borrow(int(shards.shard[sample])) as file:
            return file.read(int(shards.offsets[sample]), min(size, limit or size))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_files"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._files = _OpenFiles(self._shards)


class _OpenFiles:
    """Keeps the most recently read shards open; one that is being read is never closed.

    Args:
        shards: the files, which must not have changed since they were listed.
    """

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._lock = threading.Lock()
        self._open: OrderedDict[int, PreadFile] = OrderedDict()
        self._readers: dict[int, int] = {}

    @contextmanager
    def borrow(self, shard: int) -> Iterator[PreadFile]:
        """Lend an open file for the duration of the block.

        Raises:
            BadDataError: the file has changed since it was listed.
        """
        with self._lock:
            file = self._open.get(shard)
            if file is None:
                file = PreadFile(self._shards.paths[shard])
                try:
                    file.check_unchanged(self._shards.identities[shard])
                except BaseException:
                    file.close()
                    raise
                self._open[shard] = file
            self._open.move_to_end(shard)
            self._readers[shard] = self._readers.get(shard, 0) + 1
        try:
            yield file
        finally:
            with self._lock:
                self._readers[shard] -= 1
                for other in list(self._open)[: max(len(self._open) - _OPEN_FILES, 0)]:
                    if not self._readers.get(other):
                        self._open.pop(other).close()
