"""Progress of work counted in images: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_UPDATE_SECONDS = 0.05


class Meter:
    """Display of the number of finished images, the rate since the start, and the time left.

    Args:
        title: what is being done.
        total: number of images.
        done: number of images that an earlier start finished.
        console: where to show it; None: standard error.
        interval: time between two plain lines, in seconds.

    Example:
        >>> with Meter("verify", total=2, interval=0) as meter:
        ...     meter.advance(images=2, size=2_000_000)
    """

    def __init__(
        self,
        title: str,
        *,
        total: int,
        done: int = 0,
        console: Console | None = None,
        interval: float = 10.0,
    ) -> None:
        self._title, self._total, self._interval = title, total, interval
        self._first = self._done = done
        self._size = 0
        self._console = console or Console(stderr=True)
        self._started = time.monotonic()
        self._next_line = self._started + interval
        self._next_update = self._started
        self._bar: Progress | None = None

    def __enter__(self) -> Meter:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._title, total=self._total, completed=self._done, rate=""
            )
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def advance(self, images: int = 1, size: int = 0) -> None:
        """Count finished images and their bytes."""
        self._done += images
        self._size += size
        now = time.monotonic()
        if self._bar is not None:
            # Not for each of thousands of images per second: an update takes longer than an image.
            if now >= self._next_update or self._done == self._total:
                self._next_update = now + _UPDATE_SECONDS
                self._bar.update(self._task, completed=self._done, rate=self._rate())
        elif now >= self._next_line or self._done == self._total:
            self._next_line = now + self._interval
            self._console.print(self._line(now), highlight=False, markup=False, soft_wrap=True)

    def message(self, text: str) -> None:
        """Print a line at once, above the bar if there is one."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        images, megabytes = (self._done - self._first) / seconds, self._size / seconds / 1e6
        return f"{images:,.0f} images/s, {megabytes:,.1f} MB/s"

    def _line(self, now: float) -> str:
        elapsed, finished = now - self._started, self._done - self._first
        left = (self._total - self._done) * elapsed / max(finished, 1)
        return (
            f"{self._title}: {self._done:,}/{self._total:,}  {self._rate()}  "
            f"elapsed {elapsed:.0f} s  left {left:.0f} s"
        )
