"""The pages of a ``.beton`` file that is being written: where and when each byte is stored."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fastrot.data.beton.journal import Journal, write_all

Page = NDArray[np.uint8]


class Pages:
    """The page that is being filled, and the number of full ones.

    Data is placed in the order of arrival, and all data of one sample in one page, as FFCV's
    writer does with one worker.

    Args:
        start: offset in the file of the first page.
        page_size: size of a page in bytes.

    Attributes:
        page_size: size of a page in bytes.
        index: index of the page that is being filled, from 0.
        used: number of its bytes in use.
        page: its bytes, of shape (page_size,); zeros from ``used`` on.
    """

    def __init__(self, start: int, page_size: int) -> None:
        self.page_size = page_size
        self.index, self.used = 0, 0
        self.page: Page = np.zeros(page_size, np.uint8)
        self._start = start

    @property
    def offset(self) -> int:
        """Return the offset in the file of the page that is being filled."""
        return self._start + self.index * self.page_size

    @staticmethod
    def space(data: Sequence[memoryview]) -> int:
        """Return the number of bytes that the data of one sample occupies.

        An empty byte string occupies one, so that its pointer is unique: FFCV finds sizes by
        pointer.
        """
        return sum(max(len(piece), 1) for piece in data)

    def place(self, data: Sequence[memoryview]) -> list[int]:
        """Copy the data of one sample into the page, which must have ``space`` for it.

        Returns:
            The offset in the file of each piece.
        """
        pointers = []
        for piece in data:
            self.page.data[self.used : self.used + len(piece)] = piece
            pointers.append(self.offset + self.used)
            self.used += max(len(piece), 1)
        return pointers

    def turn(self, blank: Page) -> None:
        """Start the next page in ``blank``, which is filled with zeros."""
        self.page = blank
        self.index, self.used = self.index + 1, 0

    def is_on_disk(self, descriptor: int, index: int, digest: int) -> bool:
        """Return whether a page that was flushed earlier can be read back.

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


class PageWriter:
    """Writes full pages to disk in a thread, one after the other, while the next one is filled.

    With a journal, each page is synced before it is recorded.

    Args:
        descriptor: file descriptor of the file.
        journal: where pages are recorded, or None.
    """

    def __init__(self, descriptor: int, journal: Journal | None) -> None:
        self._descriptor, self._journal = descriptor, journal
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fastrot-pages")
        self._last: Future[Page] | None = None

    def write(self, pages: Pages, rows: NDArray[Any]) -> None:
        """Hand over the page that is being filled once the previous one is on disk.

        Args:
            pages: the pages; they continue with a blank one.
            rows: rows of the samples that end in this page; they must not change any more.

        Raises:
            OSError: as the system reports it for the previous page; ``pages`` is unchanged.
        """
        blank = self.wait()
        if blank is None:
            blank = np.zeros_like(pages.page)
        self._last = self._thread.submit(self._store, pages.page, pages.offset, pages.index, rows)
        pages.turn(blank)

    def wait(self) -> Page | None:
        """Wait until all is on disk; return the last page's memory, blanked, if there was one.

        Raises:
            OSError: as the system reports it, on every call.
        """
        return None if self._last is None else self._last.result()

    def close(self) -> None:
        """End the thread when it has finished its work; its failure is not raised."""
        with contextlib.suppress(OSError):
            self.wait()
        self._thread.shutdown()

    def _store(self, page: Page, offset: int, index: int, rows: NDArray[Any]) -> Page:
        write_all(self._descriptor, page.data, offset)
        if self._journal is not None:
            digest = xxhash.xxh3_64_intdigest(page.data)
            os.fsync(self._descriptor)
            self._journal.append(index, digest, rows)
        page[:] = 0
        return page
