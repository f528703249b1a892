"""The progress display of a run: a live panel on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_WINDOW = 30
"""Number of updates that the estimate of the time left covers, so it adapts after a pause."""

_CURVE = 40
"""Number of updates that the loss curve shows if there is room."""

_SHORT, _REDRAWN = 1.0, 0.1
"""Seconds of a validation before its bar is drawn, and between two redraws."""

_BARS = "▁▂▃▄▅▆▇█"

_Format = Callable[[float], str]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


# What the loop reports, in the order of display: key, label, format.
_METRICS: dict[str, tuple[str, _Format]] = {
    "loss": ("loss", lambda x: f"{x:.4f}"),
    "accuracy": ("rotation accuracy", _percent),
    "learning_rate": ("learning rate", lambda x: f"{x:.4g}"),
    "images_per_second": ("source images/s", _count),
    "views_per_second": ("views/s", _count),
    "data_wait": ("data wait", _percent),
}


class Progress:
    """Shows the state of a run; a context manager.

    On a terminal: a bar and the newest metrics, redrawn in place. Elsewhere (a file, a pipe, a
    Slurm log): one line per interval, and always one for the last step.

    Args:
        total_steps: number of steps of the whole run.
        first_step: number of steps done before this process started (a resumed run).
        interval: minimum number of seconds between two plain lines.
        console: where to draw; default: standard error.

    Example:
        >>> with Progress(total_steps=10, interval=0) as progress:
        ...     progress.update(step=1, metrics={"epoch": 0.1, "loss": 1.386, "accuracy": 0.25})
    """

    def __init__(
        self,
        *,
        total_steps: int,
        first_step: int = 0,
        interval: float = 10.0,
        console: Console | None = None,
    ) -> None:
        self._total = total_steps
        self._interval = interval
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._newest = Group()
        self._started = time.monotonic()
        self._next_line = self._next_look = self._validation_began = self._started
        self._recent: deque[tuple[float, int]] = deque([(self._started, first_step)], _WINDOW)
        self._losses: deque[float] = deque(maxlen=_CURVE)

    def update(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics after a step.

        Args:
            step: steps done, over the whole run.
            metrics: ``epoch`` (may be fractional), ``loss``, ``accuracy`` (0 to 1),
                ``learning_rate``, ``images_per_second`` (source images), ``views_per_second``,
                ``data_wait`` (fraction of time, 0 to 1); others are shown under their own names.
        """
        now = time.monotonic()
        self._recent.append((now, step))
        if "loss" in metrics:
            self._losses.append(metrics["loss"])
        if self._live is not None:
            self._newest = self._panel(step, metrics)
            self._live.update(self._newest, refresh=True)
        elif now >= self._next_line or step >= self._total:
            self._next_line = now + self._interval
            self._console.print(self._line(step, metrics), soft_wrap=True, highlight=False)

    def validating(self, *, step: int, batch: int, batches: int) -> None:
        """Show the progress of a validation, unless it is short.

        Args:
            step: steps done, over the whole run.
            batch: number of finished batches of the validation.
            batches: total number of its batches.
        """
        now = time.monotonic()
        if not batch:
            self._validation_began = now
            self._next_look = now + (self._interval if self._live is None else _SHORT)
        if now < self._next_look:
            return
        self._next_look = now + (self._interval if self._live is None else _REDRAWN)
        seconds = now - self._validation_began
        what = f"validation after step {step:,}"
        rate = f"{batch / seconds:.1f} batches/s"
        left = f"{_clock(seconds / batch * (batches - batch))} left"
        if self._live is None:
            line = f"{what}: batch {batch:,}/{batches:,}  {rate}  {left}"
            self._console.print(line, soft_wrap=True, highlight=False)
            return
        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=batches, completed=batch, width=32)
        share = Text(_percent(batch / batches), style="bold")
        row.add_row(Text(what, style="bold"), bar, share, rate, Text(left, style="bold"))
        self._live.update(row, refresh=True)

    def validated(self) -> None:
        """Show the metrics again."""
        if self._live is not None:
            self._live.update(self._newest, refresh=True)

    def message(self, text: str) -> None:
        """Print a line now, above the live panel if there is one; ``text`` is not markup."""
        self._console.print(Text(text), soft_wrap=True)

    def __enter__(self) -> Progress:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, step: int, metrics: Mapping[str, float]) -> str:
        parts = [f"step {step}/{self._total}"]
        if "epoch" in metrics:
            parts.append(f"epoch {metrics['epoch']:.2f}")
        parts += [
            f"{name} {text}" if not name.endswith("/s") else f"{text} {name}"
            for name, text in _readable(metrics)
        ]
        parts += [f"elapsed {self._elapsed()}", f"left {self._left(step)}"]
        return "  ".join(parts)

    def _panel(self, step: int, metrics: Mapping[str, float]) -> Group:
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text("training", style="bold"),
            Text(f"epoch {metrics['epoch']:.2f}" if "epoch" in metrics else ""),
            Text(f"step {step:,}/{self._total:,}"),
            ProgressBar(total=self._total, completed=step, width=32),
            Text(_percent(min(step / self._total, 1)), style="bold"),
            Text(f"{self._elapsed()} elapsed"),
            Text(f"{self._left(step)} left", style="bold"),
        )
        body = Table.grid(padding=(0, 3))
        readable = _readable(metrics)
        names = [name for name, _ in readable] + ["recent losses"]
        # A curve too wide for its column would lose its newest end.
        curve = _CURVE if self._console.width >= 120 else 10
        body.add_row(*(Text(name, style="dim") for name in names))
        body.add_row(
            *(Text(text, style="bold cyan") for _, text in readable),
            Text(_sparkline(list(self._losses)[-curve:]), style="green"),
        )
        return Group(head, body)

    def _elapsed(self) -> str:
        return _clock(time.monotonic() - self._started)

    def _left(self, step: int) -> str:
        (then, first), (now, last) = self._recent[0], self._recent[-1]
        if last <= first or now <= then:
            return "-:--"
        return _clock((self._total - step) * (now - then) / (last - first))


def _readable(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return names and formatted values: the known ones in their order, then the others."""
    known = [(name, form(metrics[key])) for key, (name, form) in _METRICS.items() if key in metrics]
    others = sorted(set(metrics) - set(_METRICS) - {"epoch"})
    return known + [(key.replace("_", " "), f"{metrics[key]:.4g}") for key in others]


def _sparkline(values: list[float]) -> str:
    finite = [value for value in values if abs(value) != float("inf") and value == value]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0
    return "".join(_BARS[round((value - low) * scale)] for value in finite)


def _clock(seconds: float) -> str:
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
