"""``fastrot bench knn``: exact neighbour search, compared with faiss, scikit-learn and torch.

All search the same unit rows with the same threads, in rounds. Before anything is reported, their
answers are compared: neighbours, and the classes that kNN predicts from them.

Shapes: m queries, n bank rows, D dimensions, k neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
    DisagreementError,
    SavedReport,
    Spread,
    limited,
    machine_record,
    ratio_fields,
    ratios,
    rotated,
    spread,
)
from fastrot.benchmarks.solvers.knn_baselines import SEARCHES, Found, missing
from fastrot.errors import UsageError
from fastrot.evaluation.knn import vote
from fastrot.features.cache import FeatureCache
from fastrot.kernels.cosine_topk.reference import cosine_topk as definition
from fastrot.solvers.topk import unit_rows
from fastrot.system.machine import usable_cores

BASELINES = ("faiss", "torch", "sklearn")
_KS, _TEMPERATURE = (10, 20, 100, 200), 0.07
_PERTURBATION = 0.3
_CHECKED = 10_000  # largest number of queries whose neighbours are compared with the reference
_APART = 5e-6  # float32 sums in any order differ by less than this


@dataclass(frozen=True)
class KnnReport(SavedReport):
    """The results of the benchmark.

    Attributes:
        seconds: time of each round, in seconds, by competitor; fastrot first.
        quality: agreement of the answers, by competitor.
        left_out: competitors that did not take part, and why.
        settings: sizes, k, threads, rounds.
        data: the data that was searched.
        record: the machine, the versions, the command.
    """

    seconds: Mapping[str, Sequence[float]]
    quality: Mapping[str, Mapping[str, float]]
    left_out: Mapping[str, str]
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    record: Mapping[str, Any]
    exit_code: int = field(default=0, init=False)

    @property
    def ratios(self) -> dict[str, Spread]:
        """Return fastrot's speed-up over each baseline: its seconds over ours, by round."""
        subject = next(iter(self.seconds))
        return {
            name: ratios(theirs, self.seconds[subject])
            for name, theirs in self.seconds.items()
            if name != subject
        }

    def to_json(self) -> dict[str, Any]:
        """Return one object of plain values; ``ratios`` holds the medians."""
        return {
            "bench": "knn",
            **ratio_fields(self.ratios),
            "quality": {name: dict(each) for name, each in self.quality.items()},
            "points": [
                {"point": name, "seconds": spread(each).to_json()}
                for name, each in self.seconds.items()
            ],
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
        table = Table(title="knn: medians of the rounds", title_justify="left")
        for head in ("", "seconds", "of rounds", "times slower", "same rows", "same classes"):
            table.add_column(head, justify="right" if head else "left")
        for name, each in self.seconds.items():
            times, ratio = spread(each), self.ratios.get(name)
            agree = self.quality[name]
            table.add_row(
                name,
                f"{times.median:.2f}",
                f"{times.low:.2f} - {times.high:.2f}",
                "" if ratio is None else f"{ratio.median:.2f}",
                f"{100 * agree['rows_equal']:.3f} %",
                f"{100 * agree['predictions_equal']:.3f} %",
            )
        console.print(table)
        for name, why in self.left_out.items():
            console.print(f"left out: {name}: {why}", markup=False, highlight=False)


@dataclass(frozen=True)
class KnnBenchRequest:
    """The request of ``fastrot bench knn``.

    Attributes:
        features: feature cache of real images, with labels; if it has too few, more rows are made
            from it (``rows_from``).
        layer: layer to search.
        bank: n.
        queries: m.
        dims: D, the first ones of the layer; None: all.
        k: number of neighbours.
        baselines: names in ``SEARCHES`` besides our own; None or empty: ``BASELINES``.
        rounds: searches per competitor.
        threads: threads per competitor; None: all usable cores.
        progress: report progress on standard error.

    Raises:
        UsageError: a value is invalid.
    """

    features: Path
    layer: str = "pool"
    bank: int = 50_000
    queries: int = 10_000
    dims: int | None = None
    k: int = 200
    baselines: tuple[str, ...] | None = None
    rounds: int = 3
    threads: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("bank", "queries", "k", "rounds"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name}={getattr(self, name)} must be at least 1")
        if self.k > self.bank:
            raise UsageError(f"--k={self.k} must be at most --bank={self.bank}")
        if unknown := set(self.baselines or ()) - set(SEARCHES):
            raise UsageError(f"unknown peers {sorted(unknown)}; choose {', '.join(SEARCHES)}")


def run_knn(request: KnnBenchRequest) -> KnnReport:
    """Measure whole searches, each from unit rows in memory to neighbours.

    Raises:
        UsageError: the cache does not fit.
        DisagreementError: a competitor found different neighbours.
    """
    bank, k, rounds = request.bank, request.k, request.rounds
    baselines = request.baselines or BASELINES
    threads = request.threads or usable_cores()
    console = Console(stderr=True) if request.progress else None
    cache = FeatureCache.open(request.features)
    rows, labels, data = rows_from(cache, request.layer, bank + request.queries, request.dims)
    left_out = {name: why for name in baselines if (why := missing(name)) is not None}
    taking_part = {"fastrot", *baselines} - set(left_out)
    names = [name for name in SEARCHES if name in taking_part]
    countdown = Countdown(len(names) * rounds + 1, console=console)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    answers: dict[str, Found] = {}
    with limited(threads), torch.inference_mode():
        known, asked = rows[:bank].contiguous(), rows[bank:].contiguous()
        del rows
        for number in range(rounds):
            for name in rotated(names, number):
                started = time.perf_counter()
                answers[name] = SEARCHES[name](asked, known, k, threads)
                seconds[name].append(time.perf_counter() - started)
                countdown.step(f"round {number + 1} {name}: {seconds[name][-1]:.2f} s")
        exact = _by_definition(asked[:_CHECKED], known, k)
        countdown.step(f"the reference, on {len(exact.rows):,} queries")
    quality = {
        name: agreement(answers[name], answers["fastrot"], exact, labels, bank, name)
        for name in names
    }
    return KnnReport(
        seconds=seconds,
        quality=quality,
        left_out=left_out,
        settings={"bank": bank, "queries": request.queries, "dims": known.shape[1], "k": k,
                  "threads": threads, "rounds": rounds},
        data={"layer": request.layer, **data},
        record=machine_record(),
    )  # fmt: skip


def rows_from(
    cache: FeatureCache, layer: str, count: int, dims: int | None
) -> tuple[torch.Tensor, NDArray[np.int64], dict[str, Any]]:
    """Return unit rows (count, D), float32, their labels, and how they were made.

    If there are too few images, a row is that of one image plus a fraction of the difference of
    two others, so rows vary in the directions in which features of real images vary.

    Raises:
        UsageError: the layer has fewer values than ``dims``, or images have no label.
    """
    features = cache.features(layer)
    features = features.reshape(-1, features.shape[-1])[:, :dims]
    if dims is not None and features.shape[1] < dims:
        raise UsageError(
            f"{cache.path}: layer {layer!r} has {features.shape[1]} values, fewer than "
            f"--dims={dims}; set --dims lower or choose another layer"
        )
    if cache.labels.ndim != 1 or not len(cache.labels) or int(cache.labels.min()) < 0:
        raise UsageError(f"{cache.path}: each image must have one label; choose labelled features")
    labels = np.repeat(np.asarray(cache.labels, np.int64), max(1, cache.crops))
    generator, real = np.random.default_rng(0), len(features)
    chosen = generator.permutation(max(real, count))[:count] % real
    rows = np.asarray(features, np.float32)[chosen]
    made = "features of real images"
    if real < count:
        one, other = generator.integers(0, real, (2, count))
        for start in range(0, count, 4096):
            part = slice(start, start + 4096)
            difference = features[one[part]].astype(np.float32) - features[other[part]]
            rows[part] += _PERTURBATION * difference
        made += f", each plus {_PERTURBATION} of the difference of two others"
    return unit_rows(rows), labels[chosen], {"rows": real, "made": made}


def agreement(
    found: Found,
    subject: Found,
    exact: Found,
    labels: NDArray[np.int64],
    bank: int,
    name: str,
) -> dict[str, float]:
    """Compare an answer with ours, and on some queries with the reference.

    Raises:
        DisagreementError: a similarity differs by more than rounding explains, or fastrot's own
            neighbours differ from those of the reference.
    """
    apart = float(np.abs(found.similarities - subject.similarities).max())
    checked = len(exact.rows)
    off = float(np.abs(found.similarities[:checked] - exact.similarities).max())
    same = found.rows == subject.rows
    if max(apart, off) > _APART:
        raise DisagreementError(
            f"{name}: a similarity differs by {max(apart, off):.2g}, more than the {_APART} of "
            "rounding; one of the competitors is wrong"
        )
    exact_rows = float((found.rows[:checked] == exact.rows).mean())
    if found is subject and exact_rows < 1:
        raise DisagreementError(f"{name}: neighbours differ from those of the reference")
    classes = int(labels.max()) + 1
    equal = [
        _classes(found, labels[:bank], k, classes) == _classes(subject, labels[:bank], k, classes)
        for k in _KS
        if k <= found.rows.shape[1]
    ]
    top1 = _classes(found, labels[:bank], min(20, found.rows.shape[1]), classes) == labels[bank:]
    return {
        "similarity_difference": max(apart, off),
        "rows_equal": float(same.mean()),
        "rows_of_definition": exact_rows,
        "predictions_equal": float(np.mean(equal)) if equal else 1.0,
        "top1": 100 * float(top1.mean()),
    }


def _classes(found: Found, labels: NDArray[np.int64], k: int, classes: int) -> NDArray[np.int64]:
    """Return the predictions of kNN, of shape (m,)."""
    votes = vote(
        found.similarities, labels[found.rows], k=k, classes=classes, temperature=_TEMPERATURE
    )
    return np.asarray(votes.argmax(axis=1), np.int64)


def _by_definition(queries: torch.Tensor, bank: torch.Tensor, k: int) -> Found:
    similarities = torch.full((len(queries), k), -torch.inf)
    rows = torch.full((len(queries), k), -1)
    definition(queries, bank, 0, similarities, rows)
    return Found(similarities.numpy(), rows.numpy())
