"""``fastrot bench plan-check``: compares predictions of ``fastrot plan`` with runs of real ranks.

Each round measures, on this machine: the step of one rank, while independent ranks keep the other
cores (or GPUs) busy; all-reduces between ranks; and a real run of all ranks. The prediction uses
only the first two. Every second round measures in reverse order, so that other load on the machine
affects both sides.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fastrot.benchmarks.common.harness import (
    Countdown,
    Spread,
    check_positive,
    machine_record,
    spread,
)
from fastrot.benchmarks.common.points_report import PointsReport, empty_table, say
from fastrot.benchmarks.plan.collectives import Fabric, Link
from fastrot.benchmarks.plan.links import OVERLAP
from fastrot.benchmarks.plan.predict import PlanInputs, planned_network, predict
from fastrot.benchmarks.plan.step_times import StepTimes
from fastrot.benchmarks.scaling.allreduce import AllReduceBenchRequest, run_allreduce
from fastrot.benchmarks.scaling.trainer_steps import Steps, Trainers
from fastrot.config import Config, load_config
from fastrot.distributed.world import World, pick_device
from fastrot.errors import UsageError

RECIPE = "digits"  # embedded, so it needs no data; images are synthetic
CASES = ("resnet18:64:16", "resnet50:64:8")
_TIMES = ("alone", "predicted", "measured")


@dataclass(frozen=True)
class Case:
    """A network, the side of its views, and the source images per step of each rank."""

    model: str
    resolution: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """Parse ``MODEL:RESOLUTION:BATCH``.

        Raises:
            UsageError: the text has another form.
        """
        try:
            model, resolution, batch = text.split(":")
            return cls(model, int(resolution), int(batch))
        except ValueError:
            raise UsageError(
                f"--cases {text}: write MODEL:RESOLUTION:BATCH, as in resnet18:64:16"
            ) from None

    def __str__(self) -> str:
        return f"{self.model}, {self.resolution} px, {self.batch} images/rank"


@dataclass(frozen=True)
class Round:
    """Results of one round: seconds per step, and the conditions of the measurement."""

    alone: float  # of a rank that communicates with no other
    predicted: float  # of the run
    measured: float  # of the run
    overlap: float  # fraction of the all-reduce that the run hid, in [0, 1]
    link: Link  # measured between the ranks
    foreign: float  # fraction of the cores used by others, the larger of both runs

    @property
    def error(self) -> float:
        """Return the relative error of the prediction."""
        return self.predicted / self.measured - 1


def compare(
    case: Case, config: Config, alone: Steps, together: Steps, link: Link, *, ranks: int
) -> Round:
    """Predict a run from the steps of one rank and the link, and compare it with the real run."""
    one, measured = (statistics.median(each.seconds) for each in (alone, together))
    on_gpu = pick_device(config.train.device, World()).type == "cuda"
    inputs = PlanInputs(
        config=config, per_gpu=case.batch, images=10**6, image_bytes=0.0,
        steps={case.resolution: StepTimes("", on_gpu, {case.batch: one})},
        network=planned_network(config.model), fabric=Fabric(link, link, ranks),
        overlap=OVERLAP[on_gpu],
    )  # fmt: skip
    nothing, everything = (predict(replace(inputs, overlap=each), ranks).step for each in (0, 1))
    hidden = (nothing - measured) / (nothing - everything)
    return Round(
        one, predict(inputs, ranks).step, measured, min(max(hidden, 0.0), 1.0), link,
        max(alone.foreign, together.foreign),
    )  # fmt: skip


@dataclass(frozen=True)
class CaseResult:
    """One case and its rounds, whose medians are reported."""

    case: Case
    rounds: list[Round] = field(default_factory=list)

    def spread(self, name: str, factor: float = 1.0) -> Spread:
        """Return the spread of one attribute of the rounds."""
        return spread([factor * float(getattr(each, name)) for each in self.rounds])

    def to_json(self) -> dict[str, Any]:
        """Return plain values, in the units that the keys name."""
        links = [each.link for each in self.rounds]
        return {
            "model": self.case.model,
            "resolution": self.case.resolution,
            "batch_per_rank": self.case.batch,
            **{f"{name}_ms": self.spread(name, 1e3).to_json() for name in _TIMES},
            "latency_us": spread([1e6 * link.latency for link in links]).to_json(),
            "gb_per_s": spread([link.bandwidth / 1e9 for link in links]).to_json(),
            "overlap": float(f"{self.spread('overlap').median:.4g}"),
            "error": float(f"{self.spread('error').median:.4g}"),
            "errors": [float(f"{each.error:.4g}") for each in self.rounds],
            "foreign": [round(each.foreign, 3) for each in self.rounds],
        }


@dataclass(frozen=True)
class PlanCheckReport(PointsReport):
    """Predictions and measurements, by case."""

    bench = "plan-check"
    results: Sequence[CaseResult]

    @property
    def exit_code(self) -> int:
        """Return 70 if the error of a prediction exceeds the bound, otherwise 0."""
        bound = self.settings["bound"]
        return 70 if any(abs(each.spread("error").median) > bound for each in self.results) else 0

    def plain_points(self) -> list[dict[str, Any]]:
        """Return one object per case."""
        return [result.to_json() for result in self.results]

    def show_points(self, console: Console) -> None:
        """Print the predictions beside the measurements."""
        table = empty_table("steps of all ranks: medians of the rounds", "", "one rank",
                            "predicted", "measured", "error", "of rounds")  # fmt: skip
        for result in self.results:
            error = result.spread("error", 100)
            table.add_row(
                str(result.case),
                *(f"{result.spread(name, 1e3).median:,.1f} ms" for name in _TIMES),
                f"{error.median:+.1f} %",
                f"{error.low:+.0f} to {error.high:+.0f} %",
            )
        console.print(table)
        hidden = ", ".join(f"{each.spread('overlap', 100).median:.0f} %" for each in self.results)
        busy = max(result.spread("foreign", 100).high for result in self.results)
        say(console, f"overlap: {hidden}; others used up to {busy:.0f} % of the cores")


@dataclass(frozen=True)
class PlanCheckRequest:
    """Options of ``fastrot bench plan-check``.

    Raises:
        UsageError: a value is wrong.
    """

    cases: tuple[str, ...] = CASES  # as ``Case.parse`` reads them
    ranks: int = 2  # of the real runs, on this machine
    threads: int = 1  # of torch, per rank
    rounds: int = 3  # per case
    steps: int = 20  # minimum number of steps per run that count, after the warm-up
    neighbours: bool = True
    """Run as many independent copies as there are ranks while measuring one rank, so that shared
    resources (memory bandwidth, clocks) slow it down as much as they slow the run."""
    overrides: tuple[str, ...] = ()  # further settings of all runs
    bound: float = 15.0  # largest error, in percent
    deadline: float = 600.0  # seconds per run
    progress: bool = True  # report progress on standard error

    def __post_init__(self) -> None:
        check_positive(
            threads=self.threads, rounds=self.rounds, bound=self.bound, deadline=self.deadline
        )
        if self.ranks < 2 or self.steps < 5:
            raise UsageError(
                f"--ranks={self.ranks} --steps={self.steps}: must be at least 2 ranks and 5 steps"
            )


def run_plan_check(request: PlanCheckRequest) -> PlanCheckReport:
    """Predict and measure all cases.

    Raises:
        UsageError: a case or a setting is wrong.
        TrainerError: a run failed.
        RankLostError: a rank of the all-reduces failed.
    """
    results = [CaseResult(Case.parse(text)) for text in request.cases]
    console = Console(stderr=True) if request.progress else None
    say = Countdown(len(results) * request.rounds, console=console)
    for number in range(request.rounds):
        for result in results:
            found = _round(result.case, request, backwards=number % 2 == 1)
            result.rounds.append(found)
            say.step(
                f"round {number + 1}: {result.case}: one rank {1e3 * found.alone:,.1f} ms, all "
                f"{1e3 * found.measured:,.1f} ms, predicted {100 * found.error:+.1f} % off "
                f"(others: {100 * found.foreign:.0f} % of the cores)"
            )
    return PlanCheckReport(
        results=results,
        settings={"ranks": request.ranks, "threads": request.threads, "rounds": request.rounds,
                  "steps": request.steps, "neighbours": request.neighbours,
                  "set": list(request.overrides), "bound": request.bound / 100},
        record=machine_record(),
    )  # fmt: skip


def _round(case: Case, request: PlanCheckRequest, *, backwards: bool) -> Round:
    ranks = request.ranks
    settings = [
        f"model.name={case.model}", f"data.resolution={case.resolution}", "model.width=64",
        "model.stem=imagenet", "model.sync_bn=false", "data.val=null", "data.workers=0",
        f"train.threads={request.threads}", *request.overrides,
    ]  # fmt: skip
    config = load_config(RECIPE, settings)
    share, whole = (f"train.global_batch={case.batch * each}" for each in (1, ranks))
    runs = {
        "alone": Trainers([*settings, share], copies=ranks if request.neighbours else 1),
        "together": Trainers([*settings, whole], ranks=ranks),
    }
    steps: dict[str, Steps] = {}
    for name in sorted(runs, reverse=backwards):
        with tempfile.TemporaryDirectory(prefix="fastrot-check-") as scratch:
            steps[name] = runs[name].run(
                Path(scratch), recipe=RECIPE, steps=request.steps, deadline=request.deadline
            )
    link = run_allreduce(
        AllReduceBenchRequest(ranks=ranks, device=config.train.device, rounds=3, seconds=0.2)
    ).link
    return compare(case, config, steps["alone"], steps["together"], link, ranks=ranks)
