"""The competitors of ``fastrot bench linear``: fastrot, cyanure, scikit-learn and torch.

Each takes the same rows, float32 in memory, starts from scratch and uses the loosest of its own
stopping rules that reaches the objective. The torch loop is given the objective and stops as soon
as it is reached, which no user could do.

Shapes: n samples, D dimensions, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from fastrot.solvers.softmax import solve_path
from fastrot.solvers.softmax_libraries import (
    Weights,
    solve_with_cyanure,
    solve_with_sklearn,
    solve_with_torch,
)


class Job(NamedTuple):
    """The problem to solve.

    Attributes:
        x: features of shape (n, D), float32.
        y: classes of shape (n,), int64, all of them present, at least three.
        strength: s.
        target: objective to reach.
        limit: time after which a loop gives up, in seconds.
        threads: threads of the competitor.
    """

    x: torch.Tensor
    y: torch.Tensor
    strength: float
    target: float
    limit: float
    threads: int


class Stop(NamedTuple):
    """A competitor's stopping rule: its own tolerance, and the dtype in which it computes."""

    tolerance: float
    dtype: torch.dtype = torch.float32


Solve = Callable[[Job, Stop], Weights]


def own(job: Job, stop: Stop) -> Weights:
    """Solve with ``solve_path``, for one strength."""
    (found,) = solve_path(job.x, job.y, [job.strength], tolerance=stop.tolerance)
    return found.weight, found.intercept


def cyanure(job: Job, stop: Stop) -> Weights:
    """Solve with cyanure's ``auto`` solver."""
    return solve_with_cyanure(
        job.x,
        job.y,
        job.strength,
        tolerance=stop.tolerance,
        threads=job.threads,
        dtype=stop.dtype,
    )


def sklearn(job: Job, stop: Stop) -> Weights:
    """Solve with LogisticRegression and its default solver, lbfgs."""
    return solve_with_sklearn(job.x, job.y, job.strength, stop=stop.tolerance, dtype=stop.dtype)


def torch_lbfgs(job: Job, stop: Stop) -> Weights:
    """Solve with torch.optim.LBFGS over all rows, until the target or the limit."""
    ended = time.perf_counter() + job.limit
    return solve_with_torch(
        job.x,
        job.y,
        job.strength,
        wanted=lambda objective: objective <= job.target or time.perf_counter() > ended,
        steps=5,
        dtype=stop.dtype,
    )


SOLVERS: dict[str, Solve] = {
    "fastrot": own,
    "cyanure": cyanure,
    "sklearn": sklearn,
    "torch-lbfgs": torch_lbfgs,
}
"""Solvers by name, fastrot's own first."""

_double = torch.float64
STOPS: dict[str, tuple[Stop, ...]] = {
    "fastrot": (Stop(1e-5), Stop(1e-6)),
    "cyanure": (
        *(Stop(tolerance) for tolerance in (1e-3, 3e-4, 1e-4, 1e-5)),
        *(Stop(tolerance, _double) for tolerance in (3e-4, 1e-4, 1e-5, 1e-6)),
    ),
    "sklearn": (
        *(Stop(tolerance) for tolerance in (1e-3, 1e-4, 1e-5)),
        *(Stop(tolerance, _double) for tolerance in (1e-4, 1e-5, 1e-6, 1e-7)),
    ),
    "torch-lbfgs": (Stop(0.0),),
}
"""Stopping rules of each, the loosest first."""


def missing(name: str) -> str | None:
    """Return why a competitor cannot take part, or None if it can."""
    module: Any = {"cyanure": "cyanure", "sklearn": "sklearn"}.get(name)
    if module is None or find_spec(module) is not None:
        return None
    return f"{module} is not installed"
