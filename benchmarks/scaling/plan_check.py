"""``fastrot bench plan-check``: what ``fastrot plan`` predicts of two ranks, beside two real ranks.

Each round measures, on this machine: the step of one rank alone while others like it, which it does
not talk to, keep the other cores (or GPUs) of the machine busy; all-reduces between ranks; and the
real run of all ranks. The prediction sees the first two alone. Rounds go forth and back, so that
what else the machine does falls on both sides.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastrot.benchmarks.common.harness import (
    Countdown,
    SavedReport,
    check_positive,
    key_fields,
    machine_record,
    spread,
)
from fastrot.benchmarks.plan.collectives import Fabric, Link
from fastrot.benchmarks.plan.gradients import planned_network
from fastrot.benchmarks.plan.predict import PlanInputs, predict
from fastrot.benchmarks.plan.records import StepRecord
from fastrot.benchmarks.plan.step_times import MeasuredSteps
from fastrot.benchmarks.scaling.allreduce import AllReduceBenchRequest, run_allreduce
from fastrot.benchmarks.scaling.trainer_steps import Steps, Trainers, wait_for_quiet
from fastrot.config import Config, load_config
from fastrot.errors import UsageError

RECIPE = "digits"  # embedded: there is nothing to name; images are synthetic
CASES = ("resnet18:64:16", "resnet50:64:8")
BOUND = 15.0
"""Largest error that a prediction may have, in percent."""
_QUIET_STEPS = 5  # that are enough for a median


@dataclass(frozen=True)
class Case:
    """A network and how much of it: ``resnet18:64:16``.

    Attributes:
        model: its name.
        resolution: side of the views.
        batch: source images a step of each rank.
    """

    model: str
    resolution: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """From ``MODEL:RESOLUTION:BATCH``.

        Raises:
            UsageError: it is not that.
        """
        try:
            model, resolution, batch = text.split(":")
            return cls(model, int(resolution), int(batch))
        except ValueError:
            raise UsageError(
                f"--cases {text}: write MODEL:RESOLUTION:BATCH, as in resnet18:64:16"
            ) from None

    def __str__(self) -> str:
        return f"{self.model}, {self.resolution} px, {self.batch} images a rank"


@dataclass
class CaseResult:
    """Seconds of one case, one value a round.

    Attributes:
        case: which.
        alone: a step of a rank that talks to nobody.
        links: measured between the ranks.
        predicted: a step of the run.
        measured: a step of the run.
        foreign: share of the cores that others used meanwhile, the larger of the two runs'.
        quiet: steps that others did not disturb, the smaller of the two runs'; 0: none, and all
            were counted.
    """

    case: Case
    alone: list[float] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)
    quiet: list[int] = field(default_factory=list)

    def add(self, alone: Steps, together: Steps, link: Link, config: Config, ranks: int) -> None:
        """Add a round."""
        self.alone.append(statistics.median(alone.seconds))
        self.links.append(link)
        self.measured.append(statistics.median(together.seconds))
        self.predicted.append(predicted(config, self.case, self.alone[-1], link, ranks=ranks))
        self.foreign.append(max(alone.foreign, together.foreign))
        self.quiet.append(min(alone.quiet, together.quiet))

    @property
    def errors(self) -> list[float]:
        """Of the prediction, relative to what was measured in the same round."""
        pairs = zip(self.predicted, self.measured, strict=True)
        return [predicted / measured - 1 for predicted, measured in pairs]

    def counted(self, values: Sequence[float]) -> list[float]:
        """Those of the rounds that others did not disturb; of all where they disturbed all."""
        quiet = [
            value for value, steps in zip(values, self.quiet, strict=True) if steps >= _QUIET_STEPS
        ]
        return quiet or list(values)

    @property
    def disturbed(self) -> int:
        """Rounds during which others kept the machine busy."""
        return sum(steps < _QUIET_STEPS for steps in self.quiet)

    @property
    def error(self) -> float:
        """The median of the rounds that count."""
        return statistics.median(self.counted(self.errors))

    def to_json(self) -> dict[str, Any]:
        """Plain values; times in milliseconds."""
        return {
            "model": self.case.model,
            "resolution": self.case.resolution,
            "batch_per_rank": self.case.batch,
            "alone_ms": _ms(self.counted(self.alone)),
            "predicted_ms": _ms(self.counted(self.predicted)),
            "measured_ms": _ms(self.counted(self.measured)),
            "latency_us": spread([1e6 * link.latency for link in self.links]).to_json(),
            "gb_per_s": spread([link.bandwidth / 1e9 for link in self.links]).to_json(),
            "error": float(f"{self.error:.4g}"),
            "errors": [float(f"{error:.4g}") for error in self.errors],
            "disturbed_rounds": self.disturbed,
            "foreign": [round(share, 3) for share in self.foreign],
            "quiet_steps": list(self.quiet),
        }


@dataclass(frozen=True)
class PlanCheckReport(SavedReport):
    """What was predicted and measured.

    Attributes:
        results: one a case.
        settings: what was asked for.
        record: the machine, the versions, the command.
    """

    results: Sequence[CaseResult]
    settings: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def exit_code(self) -> int:
        """70 if a prediction is further off than the bound."""
        bound = self.settings["bound"]
        return 70 if any(abs(result.error) > bound for result in self.results) else 0

    def to_json(self) -> dict[str, Any]:
        """One object of plain values."""
        return {
            "bench": "plan-check",
            "points": [result.to_json() for result in self.results],
            "settings": dict(self.settings),
            "record": dict(self.record),
        }

    def records(self) -> list[dict[str, Any]]:
        """One object for each case that stands alone."""
        return [
            {
                "bench": "plan-check",
                **result.to_json(),
                **key_fields(self.record),
                "settings": dict(self.settings),
                "record": dict(self.record),
            }
            for result in self.results
        ]

    def show(self, console: Console) -> None:
        """Print it for people."""
        ranks = self.settings["ranks"]
        table = Table(title=f"a step of {ranks} ranks: medians of the rounds", title_justify="left")
        for head in ("", "one rank", "predicted", "measured", "error", "of rounds"):
            table.add_column(head, justify="right" if head else "left")
        for result in self.results:
            errors = spread(result.counted(result.errors))
            table.add_row(
                str(result.case),
                *(f"{1e3 * statistics.median(result.counted(each)):,.1f} ms"
                  for each in (result.alone, result.predicted, result.measured)),
                f"{100 * errors.median:+.1f} %",
                f"{100 * errors.low:+.0f} to {100 * errors.high:+.0f} %",
            )  # fmt: skip
        console.print(table)
        for result in self.results:
            if result.disturbed:
                left = "none is left out" if result.disturbed == len(result.quiet) else "left out"
                console.print(
                    f"{result.case}: others kept the machine busy in {result.disturbed} of "
                    f"{len(result.quiet)} rounds ({left}); --patience SECONDS waits for them",
                    highlight=False,
                )
        beside = "beside others like it" if self.settings["neighbours"] else "on its own"
        console.print(
            f"one rank: {beside}, {self.settings['threads']} torch thread(s) each; "
            f"bound: {100 * self.settings['bound']:.0f} %",
            highlight=False,
        )


@dataclass(frozen=True)
class PlanCheckRequest:
    """What ``fastrot bench plan-check`` is asked to predict and to measure.

    Attributes:
        cases: as ``Case.parse`` reads them.
        ranks: of the real runs, on this machine.
        threads: of torch, for each rank.
        rounds: of each case.
        steps: of a run that are counted, at least, once it is warm.
        neighbours: measure one rank while as many others as there are ranks do the same, each for
            itself: what the ranks of a machine share (bandwidth of its memory, clocks) then slows
            the record as it slows the run.
        overrides: further settings of all runs.
        bound: largest error, in percent.
        patience: seconds for which a run waits until others leave the machine alone, or is made
            anew because they did not.
        deadline: seconds of a run.
        progress: report progress on standard error.

    Raises:
        UsageError: a value is wrong.
    """

    cases: tuple[str, ...] = CASES
    ranks: int = 2
    threads: int = 1
    rounds: int = 3
    steps: int = 20
    neighbours: bool = True
    overrides: tuple[str, ...] = ()
    bound: float = BOUND
    patience: float = 0.0
    deadline: float = 600.0
    progress: bool = True

    def __post_init__(self) -> None:
        check_positive(
            threads=self.threads, rounds=self.rounds, bound=self.bound, deadline=self.deadline
        )
        if self.ranks < 2 or self.steps < 5:
            raise UsageError(
                f"--ranks={self.ranks} --steps={self.steps}: two ranks and five steps at least"
            )


def run_plan_check(request: PlanCheckRequest) -> PlanCheckReport:
    """Predict and measure.

    Raises:
        UsageError: a case or a setting is wrong.
        TrainerError: a run failed.
        RankLostError: a rank of the all-reduces failed.
    """
    ranks, rounds = request.ranks, request.rounds
    results = [CaseResult(Case.parse(text)) for text in request.cases]
    console = Console(stderr=True) if request.progress else None
    say = Countdown(len(results) * rounds * 3, console=console)
    for number in range(rounds):
        for result in results:
            settings = _settings(result.case, request.threads, request.overrides)
            config = load_config(RECIPE, settings)
            share = f"train.global_batch={result.case.batch}"
            whole = f"train.global_batch={result.case.batch * ranks}"
            runs = {
                "alone": Trainers([*settings, share], copies=ranks if request.neighbours else 1),
                "together": Trainers([*settings, whole], ranks=ranks),
            }
            found: dict[str, Steps] = {}
            for name in ("alone", "link", "together")[:: -1 if number % 2 else 1]:
                if name == "link":
                    link = _link(ranks, config.train.device)
                    said = f"{1e6 * link.latency:,.0f} us, {link.bandwidth / 1e9:,.2f} GB/s"
                else:
                    found[name] = _quiet(runs[name], request)
                    said = (
                        f"{1e3 * statistics.median(found[name].seconds):,.1f} ms "
                        f"(others: {100 * found[name].foreign:.0f} % of the cores, quiet steps: "
                        f"{found[name].quiet})"
                    )
                say.step(f"round {number + 1}: {result.case}, {name}: {said}")
            result.add(found["alone"], found["together"], link, config, ranks)
            say.message(f"{result.case}: predicted {100 * result.errors[-1]:+.1f} % off")
    return PlanCheckReport(
        results=results,
        settings={"ranks": ranks, "threads": request.threads, "rounds": rounds,
                  "steps": request.steps, "neighbours": request.neighbours,
                  "set": list(request.overrides), "bound": request.bound / 100,
                  "patience": request.patience},
        record=machine_record(),
    )  # fmt: skip


def _settings(case: Case, threads: int, overrides: Sequence[str]) -> list[str]:
    return [
        f"model.name={case.model}", f"data.resolution={case.resolution}", "model.width=64",
        "model.stem=imagenet", "model.sync_bn=false", "data.val=null", "data.workers=0",
        f"train.threads={threads}", *overrides,
    ]  # fmt: skip


def _link(ranks: int, device: str) -> Link:
    return run_allreduce(
        AllReduceBenchRequest(ranks=ranks, device=device, rounds=3, seconds=0.2)
    ).link


def _quiet(trainers: Trainers, request: PlanCheckRequest) -> Steps:
    """Run until enough steps were quiet, or the patience is over; the best run counts."""
    end, best = time.monotonic() + request.patience, None
    while best is None or (best.quiet < _QUIET_STEPS and time.monotonic() < end):
        wait_for_quiet(end)
        with tempfile.TemporaryDirectory(prefix="fastrot-check-") as scratch:
            found = trainers.run(
                Path(scratch), recipe=RECIPE, steps=request.steps, deadline=request.deadline
            )
        if best is None or found.quiet > best.quiet:
            best = found
    return best


def predicted(config: Config, case: Case, alone: float, link: Link, *, ranks: int) -> float:
    """Seconds of a step as ``fastrot plan`` would say, from one rank's and the link.

    Args:
        config: of the run.
        case: which.
        alone: seconds of a step of one rank.
        link: between the ranks.
        ranks: how many.
    """
    on_gpu = config.train.device == "cuda"
    record = StepRecord(
        source="plan-check", hardware="this machine", on_gpu=on_gpu, commit="",
        model=(config.model.name, config.model.width, config.model.stem),
        resolution=case.resolution, views=4, precision="fp32", step="eager", cuda_graph=False,
        batch=case.batch, seconds=alone,
    )  # fmt: skip
    inputs = PlanInputs(
        config=config, per_gpu=case.batch, images=10**6, image_bytes=0.0,
        steps=MeasuredSteps((record,), ""),
        network=planned_network(config.model, case.resolution),
        fabric=Fabric(link, link, ranks), overlap=on_gpu,
    )  # fmt: skip
    return predict(inputs, ranks).step


def _ms(seconds: Sequence[float]) -> dict[str, float]:
    return spread([1e3 * each for each in seconds]).to_json()
