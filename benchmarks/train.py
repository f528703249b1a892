"""``fastrot bench train``: compares loaders in the trainer itself, on real images.

In each round, each loader gets its own ``fastrot train``, started as by a user and stopped once it
has run long enough; rates are those of its log. ``synthetic`` reads nothing, so the difference
between it and a loader is the cost of loading.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from fastrot.benchmarks.common.harness import (
    Countdown,
    Spread,
    check_positive,
    machine_record,
    ratio_fields,
    ratios,
    rotated,
    spread,
)
from fastrot.benchmarks.common.points_report import PointsReport, empty_table, say
from fastrot.benchmarks.common.trainers import Lines, TrainerError, train_until
from fastrot.benchmarks.loader.data import prepare_data
from fastrot.config import load_config
from fastrot.data.loader import LOADERS
from fastrot.errors import UsageError

CEILING = "synthetic"
_START_SECONDS = 600.0  # until the first log lines: imports, compilation, graph capture
_WARM_UP = 2  # log lines that are not counted


@dataclass
class LoaderRates:
    """One loader: source images/s and the fraction of time that steps waited, in each round."""

    name: str
    rates: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TrainReport(PointsReport):
    """Results of the benchmark."""

    bench = "train"
    points: Sequence[LoaderRates]  # loaders, the ceiling first
    views: int  # views per image
    step: str  # the log's line on how a step is computed

    def ratios(self) -> dict[str, Spread]:
        """Return the fraction of the ceiling that each loader reaches."""
        ceiling, *loaders = self.points
        return {point.name: ratios(point.rates, ceiling.rates) for point in loaders}

    def summary(self) -> dict[str, Any]:
        """Return the fractions of the ceiling, and how a step is computed."""
        return {**ratio_fields(self.ratios()), "step": self.step}

    def plain_points(self) -> list[dict[str, Any]]:
        """Return one object per loader."""
        shares = self.ratios()
        return [
            {
                "point": point.name,
                **{key: self.settings[key] for key in ("model", "resolution", "batch")},
                "step": self.step.removeprefix("step: ").partition(" ")[0],
                "loader": point.name,
                "views_per_s": float(f"{self.views * spread(point.rates).median:.5g}"),
                "of_synthetic": shares[point.name].to_json() if point.name in shares else None,
                "images_per_second": spread(point.rates).to_json(),
                "views_per_second": spread([self.views * rate for rate in point.rates]).to_json(),
                "data_wait": spread(point.waits).to_json(),
                "how": self.step,
            }
            for point in self.points
        ]

    def show_points(self, console: Console) -> None:
        """Print the loaders beside the ceiling."""
        say(console, self.step)
        table = empty_table("train: medians of the rounds", "", "images/s", "of rounds", "views/s",
                            "data wait", "of synthetic")  # fmt: skip
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
        if shares:
            best = max(shares, key=lambda name: shares[name].median)
            say(
                console,
                f"the best loader, {best}, reaches {100 * shares[best].median:.1f} % of the rate "
                "without loading",
            )


@dataclass(frozen=True)
class TrainBenchRequest:
    """Options of ``fastrot bench train``.

    Raises:
        UsageError: a value is wrong.
    """

    data: Path  # a .beton file or a folder of images
    recipe: str = "resnet50_8xb16-steplr-70e"  # as for ``fastrot train -c``
    overrides: tuple[str, ...] = ()  # as for ``fastrot train --set``
    loaders: tuple[str, ...] = ("native", "ffcv", "dali")
    """Loaders to compare; ``synthetic`` is always included."""
    rounds: int = 3  # number of rounds; each trains once with every loader
    seconds: float = 20.0  # length of a run after the warm-up
    repeat: int | None = None  # how many copies of the data to read; None: enough for 3,000 samples
    progress: bool = True  # report progress on standard error

    def __post_init__(self) -> None:
        check_positive(rounds=self.rounds, seconds=self.seconds, repeat=self.repeat)
        if unknown := [name for name in self.loaders if name not in LOADERS]:
            raise UsageError(f"loaders {', '.join(unknown)} are unknown; use {', '.join(LOADERS)}")


def run_train(request: TrainBenchRequest) -> TrainReport:
    """Train with each loader for a while, and compare their rates.

    Raises:
        UsageError: the recipe or the data is wrong.
        TrainerError: training failed even without loading.
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
                out = scratch / f"{name}-{number}"
                try:
                    rate, wait, said = _measure(
                        request, data.path, name, out, config.train.global_batch
                    )
                except TrainerError as error:
                    if name == CEILING:
                        raise
                    del points[name]
                    left_out[name] = str(error)
                    say.skip(rounds - number)
                    say.message(f"left out: {name}: {error}")
                    continue
                step = said or step
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


def _measure(
    request: TrainBenchRequest, data: Path, loader: str, out: Path, batch: int
) -> tuple[float, float, str]:
    """Return source images/s, the fraction of time spent waiting, and the log's line on the step.

    The first log lines are a warm-up. The output is not kept, so the trainer need not end cleanly.

    Raises:
        TrainerError: the trainer exited, or hung, too early.
    """
    settings = [*request.overrides, "train.log_seconds=0.5", "train.checkpoint_minutes=100000"]
    (lines,) = train_until(
        lambda logs: _trained_seconds(logs[0][_WARM_UP - 1 :]) >= request.seconds,
        {
            out: [
                *("-c", request.recipe, "--data", str(data), "--loader", loader),
                *(word for setting in settings for word in ("--set", setting)),
            ]
        },
        deadline=_START_SECONDS + request.seconds,
    )
    text = out.with_suffix(".log").read_text(errors="replace")
    step = next((line for line in text.splitlines() if line.startswith("step: ")), "")
    counted = lines[_WARM_UP - 1 :]
    elapsed = _trained_seconds(counted)
    waited = sum(
        line["data_wait"] * (line["time"] - before["time"]) for before, line in pairwise(counted)
    )
    images = (counted[-1]["step"] - counted[0]["step"]) * batch
    return images / elapsed, waited / elapsed, step


def _trained_seconds(lines: Lines) -> float:
    return lines[-1]["time"] - lines[0]["time"] if len(lines) > 1 else -1.0
