"""The problem of ``softmax``, solved by torch, scikit-learn and cyanure.

torch and scikit-learn run until the certified duality gap is small enough or no longer improves;
cyanure stops when its own estimate of the gap is small enough. The certified gap of the result
shows how close to optimal it is.

Shapes: n samples, D dimensions, C classes, K of them present.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch

from fastrot.solvers.libraries import require_library
from fastrot.solvers.openmp import openmp_kept
from fastrot.solvers.softmax import Solution, certificate

Weights = tuple[torch.Tensor, torch.Tensor]
"""W of shape (D, C) and b of shape (C,)."""

_PASSES = 20_000
_STEPS = 200  # of LBFGS between two checks of the gap
_STANDSTILL = 0.9  # ratio of the gap to the previous one above which it no longer improves
_FIRST_TOLERANCE, _LAST_TOLERANCE = 1e-4, 1e-9


def solve_by_library(
    solver: str,
    features: torch.Tensor,
    labels: torch.Tensor,
    strength: float,
    *,
    classes: int | None = None,
    tolerance: float = 1e-6,
) -> Solution:
    """Solve the problem of ``softmax.solve_path`` for one strength, from scratch.

    Args:
        solver: ``torch``, ``sklearn`` or ``cyanure``; the last two compute on the CPU.
        features: of shape (n, D), any float dtype.
        labels: of shape (n,), integers from 0.
        strength: s.
        classes: C; None: the largest label plus 1.
        tolerance: relative duality gap, positive.

    Raises:
        UsageError: the library is not installed.
    """
    solvers: dict[str, Callable[..., Weights]] = {
        "torch": solve_with_torch,
        "sklearn": solve_with_sklearn,
        "cyanure": solve_with_cyanure,
    }
    weight, intercept = (
        part.to(features.device).double()
        for part in solvers[solver](
            features, labels, strength, classes=classes, tolerance=tolerance
        )
    )
    objective, gap = certificate(features, labels, strength, weight, intercept)
    return Solution(strength, weight, intercept, objective, gap, 0, 0)


def solve_with_torch(
    features: torch.Tensor,
    labels: torch.Tensor,
    strength: float,
    *,
    classes: int | None = None,
    tolerance: float = 1e-6,
    wanted: Callable[[float], bool] | None = None,
    steps: int = _STEPS,
    dtype: torch.dtype = torch.float64,
) -> Weights:
    """Solve with torch.optim.LBFGS over all rows, on the device of the features.

    Args:
        features: of shape (n, D), any float dtype.
        labels: of shape (n,), integers from 0.
        strength: s.
        classes: C; None: the largest label plus 1.
        tolerance: relative duality gap.
        wanted: called with the objective; returns whether it is low enough. None: the gap decides.
        steps: steps between two checks.
        dtype: dtype of the computation.
    """
    present, targets = torch.unique(labels.to(features.device), return_inverse=True)
    classes = int(present.max()) + 1 if classes is None else classes
    x = features.to(dtype)
    w = x.new_zeros(x.shape[1], len(present)).requires_grad_()
    b = x.new_zeros(len(present)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [w, b], max_iter=steps, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=0.0, tolerance_change=0.0,
    )  # fmt: skip

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ w + b, targets)
        value = value + 0.5 * strength * w.square().sum()
        value.backward()
        return value

    gap = math.inf
    while True:
        objective = float(optimizer.step(loss).detach())
        if wanted is not None:
            if wanted(objective):
                break
            continue
        last, gap = gap, certificate(features, targets, strength, w.detach(), b.detach())[1]
        if not tolerance < gap <= _STANDSTILL * last:  # also if it is NaN
            break
    return _spread(w.detach(), b.detach(), present, classes)


def solve_with_sklearn(
    features: torch.Tensor,
    labels: torch.Tensor,
    strength: float,
    *,
    classes: int | None = None,
    tolerance: float = 1e-6,
    stop: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Weights:
    """Solve with scikit-learn's LogisticRegression (lbfgs).

    Its ``tol`` bounds the gradient; it is tightened, each time with a warm start, until the gap
    is small.

    Args:
        features: of shape (n, D), any float dtype.
        labels: of shape (n,), integers from 0.
        strength: s.
        classes: C; None: the largest label plus 1.
        tolerance: relative duality gap.
        stop: the only ``tol`` to use, whatever the gap; None: see above.
        dtype: dtype of the computation.
    """
    from sklearn.linear_model import LogisticRegression

    present, targets = torch.unique(labels.cpu(), return_inverse=True)
    classes = int(present.max()) + 1 if classes is None else classes
    x, y = features.cpu().to(dtype), targets.numpy()
    if len(present) == 1:
        return _spread(x.new_zeros(x.shape[1], 1), x.new_zeros(1), present, classes)
    # Two classes have a single weight vector: W = (-w, w) / 2, with half the strength.
    halved = strength / 2 if len(present) == 2 else strength
    tol = _FIRST_TOLERANCE if stop is None else stop
    model = LogisticRegression(C=1 / (halved * len(x)), max_iter=_PASSES, warm_start=True)
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the gap shows a lack of convergence
            model.set_params(tol=tol).fit(x.numpy(), y)
        w, b = _both_sides(torch.from_numpy(model.coef_.T), torch.from_numpy(model.intercept_))
        done = stop is not None or tol <= _LAST_TOLERANCE
        if done or certificate(features.cpu(), targets, strength, w, b)[1] <= tolerance:
            return _spread(w, b, present, classes)
        tol /= 10


def solve_with_cyanure(
    features: torch.Tensor,
    labels: torch.Tensor,
    strength: float,
    *,
    classes: int | None = None,
    tolerance: float = 1e-6,
    threads: int = -1,
    dtype: torch.dtype = torch.float64,
) -> Weights:
    """Solve with cyanure (Mairal, 2019), an optional package.

    Args:
        features: of shape (n, D), any float dtype; cyanure computes on the CPU.
        labels: of shape (n,), integers from 0.
        strength: s.
        classes: C; None: the largest label plus 1.
        tolerance: cyanure's ``tol``, its relative duality gap.
        threads: number of threads; -1: all cores.
        dtype: float64, or float32, which does not reach small gaps.

    Raises:
        UsageError: cyanure is not installed.
    """
    estimators: Any = require_library("cyanure", "linear.solver")
    present, targets = torch.unique(labels.cpu(), return_inverse=True)
    classes = int(present.max()) + 1 if classes is None else classes
    x = features.cpu().to(dtype)
    if len(present) == 1:
        return _spread(x.new_zeros(x.shape[1], 1), x.new_zeros(1), present, classes)
    binary = len(present) == 2
    model = estimators.Classifier(
        loss="logistic" if binary else "multiclass-logistic",
        penalty="l2",
        lambda_1=strength / 2 if binary else strength,
        fit_intercept=True,
        tol=tolerance,
        max_iter=_PASSES,
        n_threads=threads,
        verbose=False,
    )
    with warnings.catch_warnings(), openmp_kept():
        warnings.simplefilter("ignore")  # the gap shows a lack of convergence
        model.fit(x.numpy(), targets.numpy())
    w = torch.from_numpy(model.coef_.copy()).reshape(x.shape[1], -1)
    b = torch.from_numpy(model.intercept_.copy()).reshape(-1)
    return _spread(*_both_sides(w, b), present, classes)


def _both_sides(w: torch.Tensor, b: torch.Tensor) -> Weights:
    """Return one column per class, even if a library has one column for two classes."""
    return (w, b) if w.shape[1] > 1 else (torch.cat([-w, w], dim=1) / 2, torch.cat([-b, b]) / 2)


def _spread(w: torch.Tensor, b: torch.Tensor, present: torch.Tensor, classes: int) -> Weights:
    """Return float64 weights with absent classes added: weight 0, intercept minus infinity."""
    weight = w.new_zeros(len(w), classes, dtype=torch.float64)
    intercept = b.new_full((classes,), -math.inf, dtype=torch.float64)
    weight[:, present], intercept[present] = w.double(), b.double()
    return weight, intercept
