"""``fastrot bench linear``: softmax regression to equal objective, against cyanure and others.

Quality comes first: fastrot's solver determines the minimum objective to a duality gap of 1e-8, and
each competitor tries ever tighter tolerances until it is within 1e-5 of that. Only then are rounds
timed, all competitors one after another in each, at the tolerance that was enough. A competitor
that does not reach the objective is left out for that strength, with the excess that it reached.

Shapes: n samples, D dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fastrot.benchmarks.common.harness import (
    Countdown,
    SavedReport,
    Spread,
    limited,
    machine_record,
    ratio_fields,
    ratios,
    rotated,
    spread,
)
from fastrot.benchmarks.solvers.linear_baselines import SOLVERS, STOPS, Job, Stop, missing
from fastrot.errors import UsageError
from fastrot.evaluation.linear.standardise import channel_statistics, read_rows, standardise
from fastrot.features.cache import FeatureCache
from fastrot.solvers.softmax import certificate, solve_path
from fastrot.system.machine import usable_cores

BASELINES = ("cyanure", "sklearn", "torch-lbfgs")
_EQUAL = 1e-5  # of the objective
_KNOWN = 1e-8  # gap of the reference


@dataclass
class SolverTimes:
    """The solutions of one competitor at one strength.

    Attributes:
        name: name of the competitor.
        strength: s.
        stop: the stopping rule with which it was timed.
        excess: relative excess of its objective over the minimum.
        gap: certified duality gap of its solution.
        wall: wall-clock time of each round, in seconds.
        cpu: CPU time of all its threads in each round, in seconds.
    """

    name: str
    strength: float
    stop: Stop
    excess: float
    gap: float
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "point": self.name,
            "strength": self.strength,
            "tolerance": self.stop.tolerance,
            "dtype": str(self.stop.dtype).removeprefix("torch."),
            "excess": float(f"{self.excess:.3g}"),
            "gap": float(f"{self.gap:.3g}"),
            "seconds": spread(self.wall).to_json(),
            "cpu_seconds": spread(self.cpu).to_json(),
        }


@dataclass(frozen=True)
class LinearReport(SavedReport):
    """The results of the benchmark.

    Attributes:
        points: competitors that reached the objective, fastrot first for each strength.
        left_out: competitors that did not take part or did not reach it, and why.
        settings: strengths, threads, rounds.
        data: the data of the problems.
        record: the machine, the versions, the command.
    """

    points: Sequence[SolverTimes]
    left_out: Mapping[str, str]
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    record: Mapping[str, Any]
    exit_code: int = field(default=0, init=False)

    def ratios(self, clock: str = "wall") -> dict[str, Spread]:
        """Return each baseline's time relative to fastrot's, over the strengths that it reached.

        Args:
            clock: ``wall``, or ``cpu`` for the seconds of all threads, which depend less on other
                work on the machine.
        """
        subject = next(iter(SOLVERS))
        ours = {p.strength: getattr(p, clock) for p in self.points if p.name == subject}
        found = {}
        for name in dict.fromkeys(p.name for p in self.points if p.name != subject):
            theirs = {p.strength: getattr(p, clock) for p in self.points if p.name == name}
            found[name] = ratios(
                np.sum(list(theirs.values()), axis=0).tolist(),
                np.sum([ours[strength] for strength in theirs], axis=0).tolist(),
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return one object of plain values; ``ratios`` holds the medians."""
        return {
            "bench": "linear",
            **ratio_fields(self.ratios()),
            "cpu_ratios": {name: r.to_json() for name, r in self.ratios("cpu").items()},
            "quality": {
                f"{p.name} {p.strength:g}": {"excess": p.excess, "gap": p.gap} for p in self.points
            },
            "points": [point.to_json() for point in self.points],
            "left_out": dict(self.left_out),
            "settings": dict(self.settings),
            "data": dict(self.data),
            "record": dict(self.record),
        }

    def show(self, console: Console) -> None:
        """Print the results."""
        for what in (self.data, self.settings):
            line = "  ".join(f"{key} {value}" for key, value in what.items())
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        table = Table(title="linear: medians of the rounds", title_justify="left")
        for head in ("", "strength", "seconds", "of rounds", "CPU s", "excess"):
            table.add_column(head, justify="right" if head else "left")
        for point in self.points:
            wall, cpu = spread(point.wall), spread(point.cpu)
            table.add_row(
                point.name,
                f"{point.strength:g}",
                f"{wall.median:.2f}",
                f"{wall.low:.2f} - {wall.high:.2f}",
                f"{cpu.median:.2f}",
                f"{point.excess:.1e}",
            )
        console.print(table)
        for name, why in self.left_out.items():
            console.print(f"left out: {name}: {why}", markup=False, highlight=False)
        cpu_ratios = self.ratios("cpu")
        for name, ratio in self.ratios().items():
            console.print(
                f"fastrot is {ratio.median:.1f} x as fast as {name} "
                f"({ratio.low:.1f} - {ratio.high:.1f}; CPU time {cpu_ratios[name].median:.1f} x)",
                highlight=False,
            )


@dataclass(frozen=True)
class LinearBenchRequest:
    """The request of ``fastrot bench linear``.

    Attributes:
        features: feature cache of real images, with one label each, of at least three classes.
        layer: layer to use; its features are standardised as in the probes.
        strengths: strengths of the penalty; each is solved from scratch.
        samples: n, the first ones of a fixed shuffle; None: all.
        baselines: names in ``SOLVERS`` besides our own; None or empty: ``BASELINES``.
        rounds: timed solutions per competitor.
        limit: time of a solution, in seconds, after which no tighter tolerance is tried.
        threads: threads per competitor; None: all usable cores.
        progress: report progress on standard error.

    Raises:
        UsageError: a value is invalid.
    """

    features: Path
    layer: str = "layer3"
    strengths: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    samples: int | None = None
    baselines: tuple[str, ...] | None = None
    rounds: int = 3
    limit: float = 300.0
    threads: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        numbers = {"rounds": self.rounds, "samples": self.samples or 1, "limit": self.limit}
        for name, number in numbers.items():
            if not number > 0:
                raise UsageError(f"--{name}={number} must be more than 0")
        strengths = list(self.strengths)
        if not strengths or not all(0 < strength < float("inf") for strength in strengths):
            raise UsageError(f"--strengths={strengths} must be one or more positive numbers")
        if unknown := set(self.baselines or ()) - set(SOLVERS):
            raise UsageError(f"unknown peers {sorted(unknown)}; choose {', '.join(SOLVERS)}")


def run_linear(request: LinearBenchRequest) -> LinearReport:
    """Measure the time to an equal objective.

    Raises:
        UsageError: the cache does not fit, or no strength was solved in time.
    """
    strengths, rounds, limit = request.strengths, request.rounds, request.limit
    baselines = request.baselines or BASELINES
    threads = request.threads or usable_cores()
    x, y = _rows(FeatureCache.open(request.features), request.layer, request.samples)
    left_out = {name: why for name in baselines if (why := missing(name)) is not None}
    taking_part = {"fastrot", *baselines} - set(left_out)
    names = [name for name in SOLVERS if name in taking_part]
    console = Console(stderr=True) if request.progress else None
    say = Countdown(len(names) * len(strengths) * rounds, console=console)
    points: list[SolverTimes] = []
    with limited(threads):
        for strength in strengths:
            (known,) = solve_path(x, y, [strength], tolerance=_KNOWN)
            least = known.objective * (1 - known.gap)  # the dual proves that none is lower
            job = Job(x, y, strength, least * (1 + _EQUAL), limit, threads)
            reached: dict[str, SolverTimes] = {}
            for name in names:
                point, best = _reach_target(name, job, least, say)
                if point is None:
                    left_out[f"{name} at {strength:g}"] = best
                    say.skip(rounds)
                else:
                    reached[name] = point
            for number in range(rounds):
                for name in rotated(list(reached), number):
                    _timed(reached[name], job)
                    say.step(
                        f"{strength:g} round {number + 1} {name}: {reached[name].wall[-1]:.2f} s"
                    )
            points += reached.values()
    if not any(point.name == "fastrot" for point in points):
        raise UsageError("no strength was solved; set a larger --limit or larger --strengths")
    kept = {p.strength for p in points if p.name == "fastrot"}
    return LinearReport(
        points=[p for p in points if p.strength in kept],
        left_out=left_out,
        settings={"strengths": list(strengths), "equal": _EQUAL, "threads": threads,
                  "rounds": rounds, "limit": limit},
        data={"layer": request.layer, "samples": len(x), "dims": x.shape[1],
              "classes": int(y.max()) + 1, "made": "features of real images, standardised"},
        record=machine_record(),
    )  # fmt: skip


def _reach_target(
    name: str, job: Job, least: float, say: Countdown
) -> tuple[SolverTimes | None, str]:
    """Return a point for the loosest stopping rule that reaches the target, or None and why."""
    best, ended = float("inf"), "its last stopping rule"
    for stop in STOPS[name]:
        started = time.perf_counter()
        weight, intercept = SOLVERS[name](job, stop)
        seconds = time.perf_counter() - started
        objective, gap = certificate(job.x, job.y, job.strength, weight, intercept)
        excess = objective / least - 1
        say.message(
            f"{job.strength:g} {name} at {stop.tolerance:g}: {excess:.1e} above, {seconds:.1f} s"
        )
        if objective <= job.target:
            return SolverTimes(name, job.strength, stop, excess, gap), ""
        best = min(best, excess)
        if seconds > job.limit:
            ended = f"{seconds:.0f} s"
            break
    return None, f"its objective is still {best:.1e} above the minimum after {ended}"


def _timed(point: SolverTimes, job: Job) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    SOLVERS[point.name](job, point.stop)
    point.wall.append(time.perf_counter() - wall)
    point.cpu.append(time.process_time() - cpu)


def _rows(
    cache: FeatureCache, layer: str, samples: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return standardised features (n, D), float32, and classes (n,), numbered without gaps."""
    labels = np.asarray(cache.labels)
    if labels.ndim != 1 or not len(labels) or int(labels.min()) < 0:
        raise UsageError(f"{cache.path}: each image must have one label; choose labelled features")
    ids = np.sort(np.random.default_rng(0).permutation(len(labels))[:samples])
    rows = read_rows(cache, layer, ids)
    x = standardise(rows, channel_statistics(rows, cache.layers[layer].channels))
    classes, y = np.unique(labels[ids], return_inverse=True)
    if len(classes) < 3:
        raise UsageError(f"{cache.path}: {len(classes)} classes; the comparison needs three")
    return x, torch.from_numpy(y.astype(np.int64))
