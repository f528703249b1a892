"""The pages of a ``.beton`` file that is being written: which byte goes where."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import xxhash

from fastrot.data.beton_journal import write_all


class Pages:
    """The page that is being filled, and how many went to disk before it.

    Data is placed in the order in which it comes, and all data of one sample in one page, as by
    FFCV's writer with one worker.

    Args:
        start: offset in the file of the first page.
        page_size: bytes.

    Attributes:
        page_size: bytes.
        index: number of the page that is being filled, from 0.
        used: bytes of it that are taken.
    """

    def __init__(self, start: int, page_size: int) -> None:
        self.page_size = page_size
        self.index, self.used = 0, 0
        self._start = start
        self._page = np.zeros(page_size, np.uint8)

    @property
    def offset(self) -> int:
        """Offset in the file of the page that is being filled."""
        return self._start + self.index * self.page_size

    @staticmethod
    def space(data: Sequence[memoryview]) -> int:
        """Bytes that the data of one sample takes.

        An empty byte string takes one, so that its pointer is its own: FFCV finds sizes by
        pointer.
        """
        return sum(max(len(piece), 1) for piece in data)

    def place(self, data: Sequence[memoryview]) -> list[int]:
        """Copy the data of one sample into the page, which has ``space`` for it.

        Returns:
            The offset in the file of each piece.
        """
        pointers = []
        for piece in data:
            self._page.data[self.used : self.used + len(piece)] = piece
            pointers.append(self.offset + self.used)
            self.used += max(len(piece), 1)
        return pointers

    def flush(self, descriptor: int) -> int:
        """Write the page, whole, and begin the next one.

        Returns:
            xxh3_64 of the page.

        Raises:
            OSError: as the system reports it; the page can be flushed again.
        """
        write_all(descriptor, self._page.data, self.offset)
        digest = xxhash.xxh3_64_intdigest(self._page.data)
        self._page[:] = 0
        self.index, self.used = self.index + 1, 0
        return digest

    def is_on_disk(self, descriptor: int, index: int, digest: int) -> bool:
        """Whether a page that was flushed before can be read back.

        Raises:
            OSError: as the system reports it.
        """
        page = bytearray(self.page_size)
        done, offset = 0, self._start + index * self.page_size
        while done < len(page):
            count = os.preadv(descriptor, [memoryview(page)[done:]], offset + done)
            if not count:
                return False
            done += count
        return xxhash.xxh3_64_intdigest(page) == digest
