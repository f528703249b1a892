"""``fastrot bench train``: compares loaders in the trainer itself, on real images.

In each round, each loader gets its own ``fastrot train``, started as by a user and stopped once it
has run long enough; rates are those of its log. ``synthetic`` reads nothing, so the difference
between it and a loader is the cost of loading.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastrot.benchmarks.common.harness import (
    Countdown,
    SavedReport,
    Spread,
    check_positive,
    key_fields,
    machine_record,
    ratio_fields,
    ratios,
    rotated,
    spread,
)
from fastrot.benchmarks.loader.data import prepare_data
from fastrot.config import load_config
from fastrot.data.loader import LOADERS
from fastrot.errors import FastrotError, UsageError
from fastrot.system.jsonl import read_json_lines
from fastrot.system.processes import Child, end_children, start_child

CEILING = "synthetic"
_START_SECONDS = 600.0  # until the first log lines: imports, compilation, graph capture
_POLL_SECONDS = 0.2
_WARM_UP = 2  # log lines that are not counted


class ShortRunError(FastrotError):
    """A trainer that ended before it had run long enough to be measured."""


@dataclass
class LoaderRates:
    """One loader: source images/s and the share of time that steps waited, in each round."""

    name: str
    rates: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TrainReport(SavedReport):
    """Results of the benchmark.

    Attributes:
        points: loaders, the ceiling first.
        views: views per image.
        step: the log's line on how a step is computed.
        left_out: loaders that could not train, and why.
        settings: recipe, overrides, rounds.
        data: the data that was read.
        record: the machine, the versions, the command.
    """

    points: Sequence[LoaderRates]
    views: int
    step: str
    left_out: Mapping[str, str]
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    record: Mapping[str, Any]
    exit_code: int = field(default=0, init=False)

    def ratios(self) -> dict[str, Spread]:
        """Return the share of the ceiling that each loader reaches."""
        ceiling, *loaders = self.points
        return {point.name: ratios(point.rates, ceiling.rates) for point in loaders}

    def to_json(self) -> dict[str, Any]:
        """Return one object of plain values; ``ratios`` are shares of the ceiling."""
        return {
            "bench": "train",
            **ratio_fields(self.ratios()),
            "points": [self._point(point) for point in self.points],
            "step": self.step,
            "left_out": dict(self.left_out),
            "settings": dict(self.settings),
            "data": dict(self.data),
            "record": dict(self.record),
        }

    def _point(self, point: LoaderRates) -> dict[str, Any]:
        return {
            "point": point.name,
            "images_per_second": spread(point.rates).to_json(),
            "views_per_second": spread([self.views * rate for rate in point.rates]).to_json(),
            "data_wait": spread(point.waits).to_json(),
        }

    def records(self) -> list[dict[str, Any]]:
        """Return one self-contained object per loader, for a results file."""
        shares = self.ratios()
        return [
            {
                "bench": "train",
                **{key: self.settings[key] for key in ("model", "resolution", "batch")},
                "step": self.step.removeprefix("step: ").partition(" ")[0],
                "loader": point.name,
                "views_per_s": float(f"{self.views * spread(point.rates).median:.5g}"),
                **key_fields(self.record),
                "of_synthetic": shares[point.name].to_json() if point.name in shares else None,
                **self._point(point),
                "how": self.step,
                "settings": dict(self.settings),
                "data": dict(self.data),
                "record": dict(self.record),
            }
            for point in self.points
        ]

    def show(self, console: Console) -> None:
        """Print the report for people."""
        for what in (self.data, self.settings):
            line = "  ".join(f"{key} {value}" for key, value in what.items())
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print(self.step, markup=False, highlight=False, soft_wrap=True)
        table = Table(title="train: medians of the rounds", title_justify="left")
        for head in ("", "images/s", "of rounds", "views/s", "data wait", "of synthetic"):
            table.add_column(head, justify="right" if head else "left")
        shares = self.ratios()
        for point in self.points:
            rate, share = spread(point.rates), shares.get(point.name)
            table.add_row(
                point.name,
                f"{rate.median:,.1f}",
                f"{rate.low:,.1f} - {rate.high:,.1f}",
                f"{self.views * rate.median:,.0f}",
                f"{100 * spread(point.waits).median:.1f} %",
                "" if share is None else f"{100 * share.median:.1f} %",
            )
        console.print(table)
        for name, why in self.left_out.items():
            console.print(f"left out: {name}: {why}", markup=False, highlight=False)
        if shares:
            best = max(shares, key=lambda name: shares[name].median)
            console.print(
                f"the best loader, {best}, reaches {100 * shares[best].median:.1f} % of the rate "
                f"without loading",
                highlight=False,
            )


@dataclass(frozen=True)
class TrainBenchRequest:
    """Options of ``fastrot bench train``.

    Attributes:
        data: a .beton file or a folder of images.
        recipe: as for ``fastrot train -c``.
        overrides: as for ``fastrot train --set``.
        loaders: loaders to compare; ``synthetic`` is always included.
        rounds: number of rounds; each trains once with every loader.
        seconds: length of a run after the warm-up.
        repeat: how many copies of the data to read; None: enough for 3,000 samples.
        progress: report progress on standard error.

    Raises:
        UsageError: a value is wrong.
    """

    data: Path
    recipe: str = "resnet50_8xb16-steplr-70e"
    overrides: tuple[str, ...] = ()
    loaders: tuple[str, ...] = ("native", "ffcv", "dali")
    rounds: int = 3
    seconds: float = 20.0
    repeat: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_positive(rounds=self.rounds, seconds=self.seconds, repeat=self.repeat)
        if unknown := [name for name in self.loaders if name not in LOADERS]:
            raise UsageError(f"loaders {', '.join(unknown)}: known are {', '.join(LOADERS)}")


def run_train(request: TrainBenchRequest) -> TrainReport:
    """Train with each loader for a while, and compare their rates.

    Raises:
        UsageError: the recipe or the data is wrong.
        ShortRunError: training failed even without loading.
    """
    recipe, overrides, rounds = request.recipe, request.overrides, request.rounds
    config = load_config(recipe, list(overrides))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastrot-bench-")))
        data = prepare_data(request.data, repeat=request.repeat, scratch=scratch)
        points = {name: LoaderRates(name) for name in dict.fromkeys((CEILING, *request.loaders))}
        left_out: dict[str, str] = {}
        step = ""
        console = Console(stderr=True) if request.progress else None
        say = Countdown(len(points) * rounds, console=console)
        for number in range(rounds):
            for name in rotated(list(points), number):
                trainer = _Trainer(recipe, overrides, data.path, name, scratch / f"{name}-{number}")
                try:
                    rate, wait = trainer.run(request.seconds, config.train.global_batch)
                except ShortRunError as error:
                    if name == CEILING:
                        raise
                    del points[name]
                    left_out[name] = str(error)
                    say.skip(rounds - number)
                    say.message(f"left out: {name}: {error}")
                    continue
                step = trainer.step or step
                points[name].rates.append(rate)
                points[name].waits.append(wait)
                say.step(
                    f"round {number + 1} {name}: {rate:,.1f} images/s, waits {100 * wait:.1f} %"
                )
    return TrainReport(
        points=list(points.values()),
        views=4 if config.pretext.views == "all" else 1,
        step=step,
        left_out=left_out,
        settings={"recipe": Path(recipe).name, "set": list(overrides), "rounds": rounds,
                  "seconds": request.seconds, "model": config.model.name,
                  "resolution": config.data.resolution, "batch": config.train.global_batch},
        data=data.to_json(),
        record=machine_record(),
    )  # fmt: skip


class _Trainer:
    """One ``fastrot train`` and its log."""

    def __init__(
        self, recipe: str, overrides: Sequence[str], data: Path, loader: str, out: Path
    ) -> None:
        self._out = out
        self._errors = out.with_suffix(".log")
        settings = [*overrides, "train.log_seconds=0.5", "train.checkpoint_minutes=100000"]
        self._command = [
            *(sys.executable, "-m", "fastrot", "train", "-c", recipe, "--data", str(data)),
            *("--loader", loader, "--out", str(out)),
            *(word for setting in settings for word in ("--set", setting)),
        ]
        self.step = ""

    def run(self, seconds: float, batch: int) -> tuple[float, float]:
        """Return source images/s and the share of time spent waiting for data, after the warm-up.

        Raises:
            ShortRunError: the trainer ended, or hung, too early.
        """
        with self._errors.open("wb") as log:
            process = start_child(self._command, output=log)
            try:
                lines = self._wait(process, seconds)
            finally:
                end_children([process])  # its output is not kept, so it need not end cleanly
        text = self._errors.read_text(errors="replace")
        self.step = next((line for line in text.splitlines() if line.startswith("step: ")), "")
        first, *counted = lines[_WARM_UP - 1 :]
        elapsed = counted[-1]["time"] - first["time"]
        waited = sum(
            line["data_wait"] * (line["time"] - before["time"])
            for before, line in zip([first, *counted], counted, strict=False)
        )
        return (counted[-1]["step"] - first["step"]) * batch / elapsed, waited / elapsed

    def _wait(self, process: Child, seconds: float) -> list[dict[str, Any]]:
        end = time.monotonic() + _START_SECONDS + seconds
        while True:
            ended = process.poll() is not None
            lines = list(self._lines())
            if len(lines) > _WARM_UP and (
                lines[-1]["time"] - lines[_WARM_UP - 1]["time"] >= seconds
            ):
                return lines
            if ended or time.monotonic() > end:
                error = ShortRunError(self._last_words(ended))
                error.exit_code = max(process.returncode or 0, 0) or error.exit_code
                raise error
            time.sleep(_POLL_SECONDS)

    def _lines(self) -> Iterator[dict[str, Any]]:
        if (self._out / "metrics.jsonl").is_file():
            for record in read_json_lines(self._out / "metrics.jsonl"):
                if record.get("kind") == "train":
                    yield dict(record)

    def _last_words(self, ended: bool) -> str:
        words = self._errors.read_text(errors="replace").strip().splitlines()
        last = words[-1].removeprefix("fastrot: ") if words else "no output"
        return last if ended else f"fewer than {_WARM_UP + 1} log lines in time; output: {last}"
