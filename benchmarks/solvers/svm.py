"""``fastrot bench svm``: a whole SVM protocol on one layer, against other solvers.

fastrot solves all problems of the protocol, from cached features to the score. A baseline fits a
sample of the same problems, equally many for every cost, on the same cores (one process per core,
as in the published scripts), and its time is scaled to all of them. The report also compares
objectives and test AP.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fastrot.benchmarks.common.harness import (
    Countdown,
    SavedReport,
    Spread,
    machine_record,
    ratio_fields,
    spread,
)
from fastrot.benchmarks.solvers.svm_baselines import BASELINES, Fit, fit_all, missing
from fastrot.benchmarks.solvers.svm_problems import Sample, sample_problems
from fastrot.data.classes import ClassMatch, match_classes
from fastrot.errors import UsageError
from fastrot.evaluation.metrics import average_precision
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import EvalConfig, load_protocol
from fastrot.evaluation.svm.lowshot import evaluate_lowshot
from fastrot.evaluation.svm.voc07 import class_signs, evaluate_svm, unit_rows
from fastrot.features.cache import FeatureCache
from fastrot.solvers.gram import Gram
from fastrot.solvers.gram_svm import solve_parts, solve_path
from fastrot.solvers.svm_libraries import certificate
from fastrot.system.machine import usable_cores

_SAY_SECONDS = 5.0
_CONVERGED = 1e-3  # relative distance of a baseline's objective at which its AP is compared


@dataclass(frozen=True)
class SvmReport(SavedReport):
    """The results of the benchmark.

    Attributes:
        ours: fastrot's seconds for the whole protocol, in each round.
        baselines: by name: time of the sample, in seconds, scaled to all problems and the same
            cores.
        quality: distances from the best known objective, and between APs.
        points: measurements behind each time.
        settings: protocol, sizes, sample, limit.
        left_out: baselines that did not take part, and why.
        record: the machine, the versions, the command.
    """

    ours: Sequence[float]
    baselines: Mapping[str, float]
    quality: Mapping[str, Mapping[str, float]]
    points: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    left_out: Mapping[str, str]
    record: Mapping[str, Any]
    exit_code: int = field(default=0, init=False)

    @property
    def ratios(self) -> dict[str, Spread]:
        """Return fastrot's speed-up over each baseline: its scaled time over ours, by round."""
        return {
            name: spread([time / o for o in self.ours]) for name, time in self.baselines.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return one object of plain values; ``ratios`` holds the medians."""
        return {
            "bench": "svm",
            **ratio_fields(self.ratios),
            "quality": {name: dict(each) for name, each in self.quality.items()},
            "points": [dict(point) for point in self.points],
            "left_out": dict(self.left_out),
            "settings": dict(self.settings),
            "record": dict(self.record),
        }

    def show(self, console: Console) -> None:
        """Print the results."""
        text = "  ".join(f"{key} {value}" for key, value in self.settings.items())
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        table = Table(title="svm: the whole protocol on one layer", title_justify="left")
        for head in ("", "seconds", "times slower", "objective", "AP apart"):
            table.add_column(head, justify="right" if head else "left")
        ours = spread(self.ours)
        worst = self.quality["fastrot"]["objective_above_best"]
        table.add_row("fastrot", f"{ours.median:.1f}", "", f"{worst:.1e}", "")
        for name, seconds in self.baselines.items():
            quality = self.quality[name]
            table.add_row(
                name,
                f"{seconds:,.0f}",
                f"{self.ratios[name].median:.1f}",
                f"{quality['objective_above_best']:.1e}",
                f"{quality['ap_distance']:.5f}",
            )
        console.print(table)
        console.print(
            "objective: worst excess over the best known, relative. AP apart: largest difference "
            f"on problems that the peer solved to {_CONVERGED:g}; a stopped fit counts as the "
            "limit.",
            markup=False,
            highlight=False,
        )
        for name, quality in self.quality.items():
            if quality.get("stopped"):
                console.print(f"{name}: {quality['stopped']:g} fits were stopped")
        for name, why in self.left_out.items():
            console.print(f"left out: {name}: {why}", markup=False, highlight=False)


@dataclass(frozen=True)
class SvmBenchRequest:
    """The request of ``fastrot bench svm``.

    Attributes:
        train: feature cache of the training images.
        test: feature cache of the test images.
        layer: layer to use.
        protocol: ``voc07-svm`` or ``voc07-lowshot``.
        baselines: names; None: all that are installed.
        each: size of a baseline's sample (``sample_problems``).
        limit: time after which a baseline's fit is stopped, in seconds; it then counts as the
            limit.
        rounds: number of runs of fastrot.
        threads: cores per solver; None: all usable cores.
        seed: seed of the sample.
        overrides: settings of the protocol.
        progress: report progress on standard error.

    Raises:
        UsageError: a value is invalid.
    """

    train: Path
    test: Path
    layer: str = "layer3"
    protocol: str = "voc07-svm"
    baselines: tuple[str, ...] | None = None
    each: int = 1
    limit: float = 120.0
    rounds: int = 1
    threads: int | None = None
    seed: int = 0
    overrides: tuple[str, ...] = ()
    progress: bool = True

    def __post_init__(self) -> None:
        for name, number in (("each", self.each), ("rounds", self.rounds), ("limit", self.limit)):
            if not number > 0:
                raise UsageError(f"--{name}={number} must be more than 0")
        if unknown := [name for name in self.baselines or () if name not in BASELINES]:
            raise UsageError(f"--peers: unknown name {unknown[0]!r}; choose {', '.join(BASELINES)}")


def run_svm(request: SvmBenchRequest) -> SvmReport:
    """Time a protocol on one layer of two feature caches, against other solvers.

    Raises:
        UsageError: the protocol has no SVMs, or its settings or the caches do not fit.
    """
    layer, limit = request.layer, request.limit
    config = load_protocol(request.protocol, [*request.overrides, ("features.layers", (layer,))])
    if config.kind not in ("svm", "lowshot"):
        raise UsageError(
            f"--protocol={request.protocol!r} has no SVMs; choose voc07-svm or voc07-lowshot"
        )
    if config.svm.solver != "fastrot":
        raise UsageError(f"svm.solver={config.svm.solver}: choose other solvers with --peers")
    names, left_out = _choose(request.baselines)
    train, test = FeatureCache.open(request.train), FeatureCache.open(request.test)
    match = match_classes(train, test)
    caches = train, test.translated(match)
    cores = request.threads or usable_cores()
    torch.set_num_threads(cores)
    sample = sample_problems(
        class_signs(train, match), config, each=request.each, seed=request.seed
    )
    countdown = Countdown(
        request.rounds + 1 + len(names) * len(sample.problems),
        console=Console(stderr=True) if request.progress else None,
    )
    ours, gaps = [], []
    for _ in range(request.rounds):
        seconds, gap = _ours(caches, config)
        ours.append(seconds)
        gaps.append(gap)
        countdown.step(f"fastrot: {seconds:.1f} s for all {sample.total:,} problems")
    solved = _solve_sample(caches[0], layer, sample, config)
    countdown.step("fastrot: the sampled problems again, for comparison")
    fits: dict[str, list[Fit]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        np.save(path, unit_rows(caches[0], layer).double().numpy())
        for name in names:
            fits[name] = []
            for fit in fit_all(
                name,
                path,
                sample.problems,
                config.svm.positive_weight,
                threads=cores,
                limit=limit,
            ):
                fits[name].append(fit)
                problem = sample.problems[fit.problem]
                text = f"{name}: C {problem.cost:.2g}, {len(problem.rows)} images"
                countdown.step(f"{text}: {fit.seconds:.2f} s {fit.failure}", every=_SAY_SECONDS)
    quality = _quality(caches[1], layer, sample, solved, fits, config, match, max(gaps))
    points = [
        {"point": "fastrot", "seconds": spread(ours).to_json(), "largest_gap": max(gaps)},
        *(_point(name, sample, each_fit, cores) for name, each_fit in fits.items()),
    ]
    return SvmReport(
        ours=ours,
        baselines={name: _scaled(name, sample, each_fit, cores) for name, each_fit in fits.items()},
        quality=quality,
        points=points,
        settings={
            "protocol": config.protocol,
            "set": list(request.overrides),
            "problems": sample.total,
            "sampled": len(sample.problems),
            "samples": caches[0].num_samples,
            "test": caches[1].num_samples,
            "dimensions": caches[0].layers[layer].dim,
            "threads": cores,
            "limit": limit,
            "seed": request.seed,
        },
        left_out=left_out,
        record=machine_record(),
    )


def _choose(baselines: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    reasons = {name: missing(name) for name in baselines or BASELINES}
    return (
        [name for name, why in reasons.items() if why is None],
        {name: why for name, why in reasons.items() if why is not None},
    )


def _ours(caches: tuple[FeatureCache, FeatureCache], config: EvalConfig) -> tuple[float, float]:
    evaluate = evaluate_svm if config.kind == "svm" else evaluate_lowshot
    started = time.perf_counter()
    scores = evaluate(*caches, config, PartialResults(None, {}), lambda _: None)
    seconds = time.perf_counter() - started
    return seconds, max(float(score.detail["largest_gap"]) for score in scores)


def _solve_sample(
    cache: FeatureCache, layer: str, sample: Sample, config: EvalConfig
) -> list[tuple[float, NDArray[np.float64]]]:
    """Return our objective, and w of shape (D + 1,), for each sampled problem."""
    features = unit_rows(cache, layer)
    gram, wide = Gram(features), features.double().numpy()
    signs = torch.zeros(len(sample.problems), len(features), dtype=torch.int8)
    for row, problem in zip(signs, sample.problems, strict=True):
        row[torch.from_numpy(problem.rows)] = torch.from_numpy(problem.signs)
    found: dict[int, tuple[float, NDArray[np.float64]]] = {}
    weight = config.svm.positive_weight
    for cost, coefficients in _solve_as_evaluated(gram, signs, config):
        for i, problem in enumerate(sample.problems):
            if problem.cost == cost:
                b = coefficients[i]
                w = np.append(b @ wide, b.sum())
                value, _ = certificate(w, wide[problem.rows], problem.signs, cost, weight)
                found[i] = (value, w)
    return [found[i] for i in range(len(sample.problems))]


def _solve_as_evaluated(
    gram: Gram, signs: torch.Tensor, config: EvalConfig
) -> Iterator[tuple[float, NDArray[np.float64]]]:
    """Yield each cost with b of shape (P, n), from the protocol's solver on its path of costs."""
    options = {
        "positive_weight": config.svm.positive_weight,
        "tolerance": config.svm.tolerance,
    }
    if config.kind == "svm":
        for solution in solve_path(gram, signs, config.svm.costs, **options):
            yield solution.cost, solution.coefficients.numpy()
        return
    whole = torch.zeros(len(config.svm.costs), *signs.shape, dtype=torch.float64)
    for stack in solve_parts(gram, signs, config.svm.costs, **options):
        for problem, members, b in zip(
            stack.problems, stack.members, stack.coefficients, strict=True
        ):
            whole[:, problem, members] = b
    yield from zip(config.svm.costs, whole.numpy(), strict=True)


def _quality(
    test: FeatureCache,
    layer: str,
    sample: Sample,
    solved: Sequence[tuple[float, NDArray[np.float64]]],
    fits: Mapping[str, Sequence[Fit]],
    config: EvalConfig,
    match: ClassMatch,
    gap: float,
) -> dict[str, dict[str, float]]:
    """Return excesses over the best known objectives, and AP differences from ours."""
    best = [value for value, _ in solved]
    for each in fits.values():
        for fit in each:
            best[fit.problem] = min(best[fit.problem], fit.objective)
    above = [value / least - 1 for (value, _), least in zip(solved, best, strict=True)]
    quality = {"fastrot": {"objective_above_best": max(above), "largest_gap": gap}}
    x, labels = unit_rows(test, layer).double().numpy(), class_signs(test, match)

    def precision(w: NDArray[np.float64], label: int) -> float:
        outputs = (x @ w[:-1] + w[-1]).astype(np.float32)
        return float(average_precision(labels[:, label], outputs, "voc2010")[0])

    for name, each in fits.items():
        distances, finished = [], [fit for fit in each if fit.w is not None]
        for fit in finished:
            problem = sample.problems[fit.problem]
            close = fit.objective <= best[fit.problem] * (1 + _CONVERGED)
            if problem.is_final and close and fit.w is not None:
                ours = precision(solved[fit.problem][1], problem.label)
                distances.append(abs(ours - precision(fit.w, problem.label)))
        quality[name] = {
            "objective_above_best": max(
                (fit.objective / best[fit.problem] - 1 for fit in finished), default=0.0
            ),
            "ap_distance": max(distances, default=0.0),
            "compared": len(distances),
            "stopped": sum(fit.w is None for fit in each),
        }
    return quality


def _scaled(name: str, sample: Sample, fits: Sequence[Fit], cores: int) -> float:
    """Return the time of all problems, in seconds, on these cores if every core is always busy."""
    total = sum(fit.seconds for fit in fits if fit.seconds == fit.seconds)
    return total / sample.share / (1 if BASELINES[name][2] else cores)


def _point(name: str, sample: Sample, fits: Sequence[Fit], cores: int) -> dict[str, Any]:
    by_cost: dict[float, list[float]] = {}
    for fit in fits:
        by_cost.setdefault(sample.problems[fit.problem].cost, []).append(fit.seconds)
    return {
        "point": name,
        "seconds_scaled": _scaled(name, sample, fits, cores),
        "seconds_of_sample": sum(fit.seconds for fit in fits),
        "stopped": sum(fit.w is None for fit in fits),
        "mean_seconds_by_cost": {
            f"{cost:g}": float(f"{np.mean(values):.4g}") for cost, values in sorted(by_cost.items())
        },
    }
