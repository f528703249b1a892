"""Who solves softmax regression in ``fastrot bench linear``: ours, cyanure, scikit-learn, torch.

Each takes the same rows, float32 in memory, starts from nothing and stops by its own rule, at the
loosest rung of its ladder that reaches the objective. The torch loop is told the objective and
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
        threads: of the contender.
    """

    x: torch.Tensor
    y: torch.Tensor
    strength: float
    target: float
    limit: float
    threads: int


class Rung(NamedTuple):
    """How a contender is to stop: its own tolerance, and the type it computes in."""

    tolerance: float
    dtype: torch.dtype = torch.float32


Weights = tuple[torch.Tensor, torch.Tensor]
Solve = Callable[[Job, Rung], Weights]


def own(job: Job, rung: Rung) -> Weights:
    """``solve_path`` of one strength."""
    (found,) = solve_path(job.x, job.y, [job.strength], tolerance=rung.tolerance)
    return found.weight, found.intercept


def cyanure(job: Job, rung: Rung) -> Weights:
    """Its ``auto`` solver."""
    return solve_with_cyanure(
        job.x,
        job.y,
        job.strength,
        tolerance=rung.tolerance,
        threads=job.threads,
        dtype=rung.dtype,
    )


def sklearn(job: Job, rung: Rung) -> Weights:
    """LogisticRegression with its default solver, lbfgs."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        peer = LogisticRegression(
            C=1 / (job.strength * len(job.x)), tol=rung.tolerance, max_iter=_PASSES
        ).fit(job.x.to(rung.dtype).numpy(), job.y.numpy())
    return torch.from_numpy(peer.coef_.T.copy()), torch.from_numpy(peer.intercept_)


def torch_lbfgs(job: Job, rung: Rung) -> Weights:
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
LADDERS: dict[str, tuple[Rung, ...]] = {
    "fastrot": (Rung(1e-5), Rung(1e-6)),
    "cyanure": (
        *(Rung(tolerance) for tolerance in (1e-3, 3e-4, 1e-4, 1e-5)),
        *(Rung(tolerance, _double) for tolerance in (3e-4, 1e-4, 1e-5, 1e-6)),
    ),
    "sklearn": (
        *(Rung(tolerance) for tolerance in (1e-3, 1e-4, 1e-5)),
        *(Rung(tolerance, _double) for tolerance in (1e-4, 1e-5, 1e-6, 1e-7)),
    ),
    "torch-lbfgs": (Rung(0.0),),
}
"""Rungs of each, the loosest first."""


def missing(name: str) -> str | None:
    """Why a contender cannot take part, or None."""
    module: Any = {"cyanure": "cyanure", "sklearn": "sklearn"}.get(name)
    if module is None or find_spec(module) is not None:
        return None
    return f"{module} is not installed"
