"""What every benchmark shares: rounds, medians with their spread, ratios, the record.

Competitors are measured in rounds, each for a moment in every round and in another order each
time, so that what else the machine does falls on all of them. A ratio is taken within each
round and its median over the rounds is reported.
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

from fastrot.errors import UsageError
from fastrot.system.files import write_atomic
from fastrot.system.jsonl import append_json_lines
from fastrot.system.machine import environment_record

_SIMD = ("sse4_2", "avx2", "avx512f", "avx512bw", "avx512_vbmi", "amx_int8", "asimd", "sve")


class Spread(NamedTuple):
    """The median of some measurements, their extremes, and their number."""

    median: float
    low: float
    high: float
    repeats: int

    def to_json(self) -> dict[str, float]:
        """Plain values with five digits, more than any measurement has."""
        rounded = {key: float(f"{value:.5g}") for key, value in self._asdict().items()}
        return {**rounded, "repeats": self.repeats}


def spread(values: Sequence[float]) -> Spread:
    """Median, least and largest of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratios(subject: Sequence[float], baseline: Sequence[float]) -> Spread:
    """How many times the baseline the subject is, round by round.

    Example:
        >>> ratios([300.0, 200.0, 330.0], [100.0, 100.0, 110.0])
        Spread(median=3.0, low=2.0, high=3.0, repeats=3)
    """
    return spread([ours / theirs for ours, theirs in zip(subject, baseline, strict=True)])


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The names in the order of one round: each goes first once in a cycle.

    Example:
        >>> rotated(["a", "b", "c"], 1)
        ['b', 'c', 'a']
    """
    first = number % len(names) if names else 0
    return [*names[first:], *names[:first]]


class Countdown:
    """Say on standard error what was measured and how long the rest will take.

    Args:
        steps: how many steps there will be.
        console: where to; None: nowhere.
    """

    def __init__(self, steps: int, *, console: Console | None) -> None:
        self._steps, self._done = steps, 0
        self._console = console
        self._started = time.monotonic()
        self._said = -math.inf

    def step(self, text: str, *, every: float = 0.0) -> None:
        """One step is done; nothing is said within ``every`` seconds of the last line."""
        self._done += 1
        if time.monotonic() - self._said < every:
            return
        self._said = time.monotonic()
        left = (time.monotonic() - self._started) / self._done * (self._steps - self._done)
        self.message(f"[{self._done}/{self._steps}] {text}  left {max(left, 0):.0f} s")

    def skip(self, steps: int) -> None:
        """Steps that will not come."""
        self._steps -= steps

    def message(self, text: str) -> None:
        """A line that is no step."""
        if self._console is not None:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def machine_record() -> dict[str, Any]:
    """What a number depends on besides the code: processor, versions, commit, command, date.

    Without the names of host and folders: records are published, so of an absolute path in the
    command only its last part stays.
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


def published_command() -> str:
    """The command line of this process, without the folders of absolute paths."""
    return shlex.join(["fastrot", *map(_published, sys.argv[1:])])


def _published(argument: str) -> str:
    """``/a/b`` as ``b``, also behind ``--option=``."""
    option, equals, value = argument.rpartition("=")
    return option + equals + (Path(value).name if value.startswith("/") else value)


def check_positive(**numbers: float | None) -> None:
    """Refuse what is not a positive, finite number; None was not given.

    Raises:
        UsageError: it names the option.
    """
    for name, number in numbers.items():
        if number is not None and not (math.isfinite(number) and number > 0):
            raise UsageError(f"--{name.replace('_', '-')}={number} must be more than 0")


def check_outputs(*paths: Path | None) -> None:
    """Refuse a file that could not be written, before an hour is spent on what goes into it.

    Raises:
        UsageError: its folder does not exist or takes no files, or it is a folder.
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
                f"{path}: its folder takes no files ({error.strerror or error}); name another"
            ) from None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write one object; what was there before stays until the new file is complete."""
    write_atomic(path, (json.dumps(document, indent=1) + "\n").encode())


def ratio_fields(ratios: Mapping[str, Spread]) -> dict[str, Any]:
    """``ratios`` (medians) and ``ratio_spreads`` of a record."""
    return {
        "ratios": {name: float(f"{ratio.median:.4g}") for name, ratio in ratios.items()},
        "ratio_spreads": {name: ratio.to_json() for name, ratio in ratios.items()},
    }


def key_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is looked for first in a results file, out of ``machine_record``."""
    return {
        "gpu": next(iter(record.get("gpus") or []), None),
        **{key: record.get(key) for key in ("driver", "cuda", "cudnn")},
        "torch": record.get("packages", {}).get("torch"),
        "commit": record.get("commit"),
    }


class SavedReport(ABC):
    """A report that can be written to a file of its own, and to a results file."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return one object of plain values."""

    def records(self) -> list[dict[str, Any]]:
        """Return lines of a results file, each of which stands alone: one, unless overridden."""
        return [self.to_json()]

    def save(self, json: Path | None, append: Path | None) -> None:
        """Write ``to_json`` into one file, and add ``records`` to another, where asked to."""
        if json is not None:
            write_json(json, self.to_json())
        if append is not None:
            append_json_lines(append, self.records())


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """So many threads for torch, and for every BLAS and OpenMP that is loaded or will be."""
    import torch

    before = torch.get_num_threads()
    if find_spec("faiss") is not None:
        importlib.import_module("faiss")  # or its BLAS would come after the limit
    control: Any = importlib.import_module("threadpoolctl")
    with control.threadpool_limits(threads):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _driver() -> str | None:
    """Version of NVIDIA's driver, the kernel module's; None without one."""
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
