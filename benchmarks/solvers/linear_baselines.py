"""Who solves softmax regression in ``fastrot bench linear``: ours, cyanure, scikit-learn, torch.

Each takes the same rows, float32 in memory, starts from nothing and stops by its own rule, at the
loosest of its stopping rules that reaches the objective. The torch loop is told the objective and
stops there at once, which no user could do.

Shapes: n samples, D dimensions, C classes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from fastrot.solvers.softmax import solve_path
from fastrot.solvers.softmax_cyanure import solve_with_cyanure

_PASSES = 20_000


class Job(NamedTuple):
    """What is to be solved.

    Attributes:
        x: features of shape (n, D), float32.
        y: classes of shape (n,), int64, all of them present, three at least.
        strength: s.
        target: objective that is wanted.
        limit: seconds after which a loop gives up.
        threads: of the competitor.
    """

    x: torch.Tensor
    y: torch.Tensor
    strength: float
    target: float
    limit: float
    threads: int


class Stop(NamedTuple):
    """When a competitor stops: its own tolerance, and the type it computes in."""

    tolerance: float
    dtype: torch.dtype = torch.float32


Weights = tuple[torch.Tensor, torch.Tensor]
Solve = Callable[[Job, Stop], Weights]


def own(job: Job, stop: Stop) -> Weights:
    """``solve_path`` of one strength."""
    (found,) = solve_path(job.x, job.y, [job.strength], tolerance=stop.tolerance)
    return found.weight, found.intercept


def cyanure(job: Job, stop: Stop) -> Weights:
    """Its ``auto`` solver."""
    return solve_with_cyanure(
        job.x,
        job.y,
        job.strength,
        tolerance=stop.tolerance,
        threads=job.threads,
        dtype=stop.dtype,
    )


def sklearn(job: Job, stop: Stop) -> Weights:
    """LogisticRegression with its default solver, lbfgs."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(
            C=1 / (job.strength * len(job.x)), tol=stop.tolerance, max_iter=_PASSES
        ).fit(job.x.to(stop.dtype).numpy(), job.y.numpy())
    return torch.from_numpy(fitted.coef_.T.copy()), torch.from_numpy(fitted.intercept_)


def torch_lbfgs(job: Job, stop: Stop) -> Weights:
    """torch.optim.LBFGS over all rows, until the target or the limit."""
    ended = time.perf_counter() + job.limit
    w = torch.zeros(job.x.shape[1], int(job.y.max()) + 1, requires_grad=True)
    b = torch.zeros(w.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [w, b], max_iter=5, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=0.0, tolerance_change=0.0,
    )  # fmt: skip

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(job.x @ w + b, job.y)
        value = value + 0.5 * job.strength * w.square().sum()
        value.backward()
        return value

    while time.perf_counter() < ended:
        if float(optimizer.step(loss).detach()) <= job.target:
            break
    return w.detach(), b.detach()


SOLVERS: dict[str, Solve] = {
    "fastrot": own,
    "cyanure": cyanure,
    "sklearn": sklearn,
    "torch-lbfgs": torch_lbfgs,
}
"""By name; the subject first."""

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
    """Why a competitor cannot take part, or None."""
    module: Any = {"cyanure": "cyanure", "sklearn": "sklearn"}.get(name)
    if module is None or find_spec(module) is not None:
        return None
    return f"{module} is not installed"
