"""Functions shared by all benchmarks: rounds, medians with their spread, ratios, records.

Competitors are measured in rounds: each briefly in every round, and in a different order each time,
so that other load on the machine affects all of them. Ratios are taken within each round, and their
median over the rounds is reported.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import shlex
import statistics
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from PIL import features
from rich.console import Console

from fastrot.errors import FastrotError, UsageError
from fastrot.system.files import write_atomic
from fastrot.system.jsonl import append_json_lines
from fastrot.system.machine import environment_record

_SIMD = ("sse4_2", "avx2", "avx512f", "avx512bw", "avx512_vbmi", "amx_int8", "asimd", "sve")


class DisagreementError(FastrotError):
    """A competitor's result differs from the reference; its time is not reported (exit code 70)."""


class Spread(NamedTuple):
    """Median, extremes and number of some measurements."""

    median: float
    low: float
    high: float
    repeats: int

    def to_json(self) -> dict[str, float]:
        """Return plain values with five significant digits, more than any measurement justifies."""
        rounded = {key: float(f"{value:.5g}") for key, value in self._asdict().items()}
        return {**rounded, "repeats": self.repeats}


def spread(values: Sequence[float]) -> Spread:
    """Return the median, the smallest and the largest of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratios(subject: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Return the spread of subject / baseline, taken round by round.

    Example:
        >>> ratios([300.0, 200.0, 330.0], [100.0, 100.0, 110.0])
        Spread(median=3.0, low=2.0, high=3.0, repeats=3)
    """
    return spread([ours / theirs for ours, theirs in zip(subject, baseline, strict=True)])


def rotated(names: Sequence[str], number: int) -> list[str]:
    """Return the names in the order of one round; each goes first once per cycle.

    Example:
        >>> rotated(["a", "b", "c"], 1)
        ['b', 'c', 'a']
    """
    first = number % len(names) if names else 0
    return [*names[first:], *names[:first]]


class Countdown:
    """Reports on a console what was measured and how long the rest will take.

    Args:
        steps: expected number of steps.
        console: console to print to; None: print nothing.
    """

    def __init__(self, steps: int, *, console: Console | None) -> None:
        self._steps, self._done = steps, 0
        self._console = console
        self._started = time.monotonic()
        self._said = -math.inf

    def step(self, text: str, *, every: float = 0.0) -> None:
        """Count a step as done; print nothing within ``every`` seconds of the last line."""
        self._done += 1
        if time.monotonic() - self._said < every:
            return
        self._said = time.monotonic()
        left = (time.monotonic() - self._started) / self._done * (self._steps - self._done)
        self.message(f"[{self._done}/{self._steps}] {text}  left {max(left, 0):.0f} s")

    def skip(self, steps: int) -> None:
        """Remove steps that will not be done."""
        self._steps -= steps

    def message(self, text: str) -> None:
        """Print a line without counting a step."""
        if self._console is not None:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def machine_record() -> dict[str, Any]:
    """Return what a result depends on besides the code: processor, versions, commit, command, date.

    Records are published, so names of host and folders are removed: of an absolute path in the
    command only the last part remains.
    """
    record = environment_record()
    for private in ("host", "folder", "command"):
        del record[private]
    pillow = features.version("pil") or ""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": published_command(),
        **record,
        "driver": _driver(),
        "simd": [flag for flag in _SIMD if flag in _processor_flags()],
        "libjpeg_turbo": features.version("libjpeg_turbo"),
        "pillow_simd": ".post" in pillow,  # how that fork numbers its releases
    }


def published_command(program: str = "fastrot") -> str:
    """Return the command line of this process, without the folders of absolute paths."""
    return f"{program} {shlex.join(map(_published, sys.argv[1:]))}".rstrip()


def _published(argument: str) -> str:
    """Return ``b`` for ``/a/b``, also after ``--option=``."""
    option, equals, value = argument.rpartition("=")
    return option + equals + (Path(value).name if value.startswith("/") else value)


def check_positive(**numbers: float | None) -> None:
    """Refuse options that are not positive, finite numbers; None: the option was not given.

    Raises:
        UsageError: an option is refused; the message names it.
    """
    for name, number in numbers.items():
        if number is not None and not (math.isfinite(number) and number > 0):
            raise UsageError(f"--{name.replace('_', '-')}={number} must be more than 0")


def check_outputs(*paths: Path | None) -> None:
    """Refuse output files that cannot be written, before an hour is spent on their contents.

    Raises:
        UsageError: a file's folder does not exist or is not writable, or the file is a folder.
    """
    for path in paths:
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir():
            raise UsageError(f"{path}: name a file in a folder that exists")
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise UsageError(
                f"{path}: its folder is not writable ({error.strerror or error}); name another"
            ) from None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write one object; an existing file remains until the new one is complete."""
    write_atomic(path, (json.dumps(document, indent=1) + "\n").encode())


def ratio_fields(ratios: Mapping[str, Spread]) -> dict[str, Any]:
    """Return ``ratios`` (medians) and ``ratio_spreads`` for a record."""
    return {
        "ratios": {name: float(f"{ratio.median:.4g}") for name, ratio in ratios.items()},
        "ratio_spreads": {name: ratio.to_json() for name, ratio in ratios.items()},
    }


def key_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``machine_record`` that readers of a results file look for first."""
    return {
        "gpu": next(iter(record.get("gpus") or []), None),
        **{key: record.get(key) for key in ("driver", "cuda", "cudnn")},
        "torch": record.get("packages", {}).get("torch"),
        "commit": record.get("commit"),
    }


class SavedReport(ABC):
    """A report that can be written to its own file, and to a results file."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return one object of plain values."""

    def records(self) -> list[dict[str, Any]]:
        """Return self-contained lines for a results file: one, unless overridden."""
        return [self.to_json()]

    def save(self, json: Path | None, append: Path | None) -> None:
        """Write ``to_json()`` to ``json`` and append ``records()`` to ``append``.

        A path that is None is skipped.
        """
        if json is not None:
            write_json(json, self.to_json())
        if append is not None:
            append_json_lines(append, self.records())


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Limit the threads of torch and of every BLAS and OpenMP, loaded now or later."""
    import torch

    before = torch.get_num_threads()
    if find_spec("faiss") is not None:
        importlib.import_module("faiss")  # otherwise its BLAS would be loaded after the limit
    control: Any = importlib.import_module("threadpoolctl")
    with control.threadpool_limits(threads):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _driver() -> str | None:
    """Return the version of NVIDIA's kernel module; None without one."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    return next((word for word in text.split() if re.fullmatch(r"\d+\.\d+(\.\d+)?", word)), None)


def _processor_flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return set(value.split())
    except OSError:
        pass
    return set()
