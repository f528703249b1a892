"""The SVMs of ``gram_svm``, solved by scikit-learn and cyanure, one fit at a time.

The problem is the same: signs, cost, weight of positives, regularised intercept. Each fit starts
from scratch, and its solution is certified by a duality gap, as fastrot's is: for
a_i = 2 C_i max(0, 1 - y_i f_i), optimally scaled, D(a) of ``gram_svm`` bounds the optimum.

Shapes: n samples in a problem, D dimensions, P problems, N samples in total.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrot.errors import UsageError
from fastrot.solvers.libraries import require_library
from fastrot.solvers.openmp import openmp_kept

_PASSES = 20_000  # of cyanure, at most
_NEWTON_STEPS = 1000  # of LIBLINEAR, at most; twenty are usual
_MEMORY = 2**33  # bytes of all fits that run at once
_BYTES = 24  # per value in a fit: the row, and LIBLINEAR's copy with the index

_Floats = NDArray[np.float64]
_Signs = NDArray[np.int8]


def fit_linearsvc(
    x: _Floats,
    y: _Signs,
    cost: float,
    positive_weight: float,
    *,
    tolerance: float,
    dual: bool = False,
    steps: int = _NEWTON_STEPS,
) -> _Floats:
    """Fit scikit-learn's LinearSVC; return w of shape (D + 1,), the intercept last.

    Newton's method in the primal reaches the optimum at every published cost. The published
    scripts descend in the dual with tol=1e-4 and 2,000 steps, which ends far from it at C = 100.

    Args:
        x: of shape (n, D).
        y: 1 or -1, of shape (n,).
        cost: C of a negative sample.
        positive_weight: C of a positive sample is this times ``cost``.
        tolerance: LinearSVC's ``tol``, a bound on the gradient.
        dual: descend in the dual.
        steps: LinearSVC's ``max_iter``.
    """
    from sklearn.svm import LinearSVC

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the duality gap shows a lack of convergence
        fitted = LinearSVC(
            C=cost,
            class_weight={1: positive_weight, -1: 1},
            intercept_scaling=1.0,
            penalty="l2",
            loss="squared_hinge",
            dual=dual,
            tol=tolerance,
            max_iter=steps,
        ).fit(x, y)
    return np.append(fitted.coef_.ravel(), fitted.intercept_)


def fit_cyanure(
    x: _Floats,
    y: _Signs,
    cost: float,
    positive_weight: float,
    *,
    tolerance: float,
    passes: int = _PASSES,
    threads: int = -1,
) -> _Floats:
    """Fit with cyanure on the CPU; return w of shape (D + 1,), the intercept last.

    It has no sample weights: a positive of weight 2 is repeated.

    Args:
        x: of shape (n, D).
        y: 1 or -1, of shape (n,).
        cost: C of a negative sample.
        positive_weight: C of a positive sample is this times ``cost``; a whole number.
        tolerance: cyanure's ``tol``, its relative duality gap.
        passes: passes over the data, at most.
        threads: number of threads; -1: all cores.
    """
    rows = np.repeat(np.arange(len(y)), np.where(y > 0, round(positive_weight), 1))
    wide = np.hstack([x, np.ones((len(x), 1))])[rows]
    fitted = require_library("cyanure", "svm.solver").Classifier(
        loss="sqhinge",
        penalty="l2",
        fit_intercept=False,
        tol=tolerance,
        max_iter=passes,
        lambda_1=1 / (2 * len(rows) * cost),
        n_threads=threads,
        verbose=False,
    )
    with warnings.catch_warnings(), openmp_kept():
        warnings.simplefilter("ignore")  # see above
        fitted.fit(wide, y[rows].astype(np.int64))
    return np.asarray(fitted.coef_, np.float64).ravel()


def certificate(
    w: _Floats, x: NDArray[np.floating[Any]], y: _Signs, cost: float, positive_weight: float
) -> tuple[float, float]:
    """Return P(w) in float64, and the duality gap relative to it.

    Args:
        w: of shape (D + 1,), the intercept last.
        x: of shape (n, D).
        y: 1 or -1, of shape (n,).
        cost: C of a negative sample.
        positive_weight: C of a positive sample is this times ``cost``.
    """
    costs = np.where(y > 0, positive_weight * cost, cost)
    hinge = np.maximum(0, 1 - y * (x @ w[:-1] + w[-1]))
    objective = float(0.5 * w @ w + costs @ hinge**2)
    a = 2 * costs * hinge
    u = (a * y) @ x
    curve = u @ u + (a @ y) ** 2 + a @ hinge  # a @ hinge is the sum of a^2 / 2 C
    dual = float(0.5 * a.sum() ** 2 / curve) if curve > 0 else 0.0
    return objective, (objective - dual) / objective if objective > 0 else 0.0


class Fit(NamedTuple):
    """One problem, solved for one cost.

    Attributes:
        problem: index of the problem.
        cost: C of negative samples.
        w: of shape (D + 1,), the intercept last.
        gap: duality gap relative to the objective.
    """

    problem: int
    cost: float
    w: _Floats
    gap: float


def check_solver(solver: str, positive_weight: float) -> None:
    """Refuse a solver that is not installed or does not support this weight of positives.

    Raises:
        UsageError: the solver cannot be used; the message names the fix.
    """
    require_library(solver, "svm.solver")
    if solver == "cyanure" and positive_weight != round(positive_weight):
        raise UsageError(
            f"svm.positive_weight={positive_weight:g}: svm.solver=cyanure needs a whole number, "
            "because it repeats positive images; set svm.solver=fastrot or sklearn"
        )


def fit_all(
    solver: str,
    features: _Floats,
    signs: _Signs,
    costs: Sequence[float],
    *,
    positive_weight: float,
    tolerance: float,
    cores: int,
) -> Iterator[Fit]:
    """Yield a fit for every problem and cost: all problems of the first cost, then of the next.

    Args:
        solver: ``sklearn``, which fits as many problems at once as cores and memory allow, or
            ``cyanure``, which fits one at a time on all cores.
        features: of shape (N, D).
        signs: of shape (P, N): 1, -1, or 0 for a sample that is not in the problem.
        costs: values of C, positive.
        positive_weight: C of a positive sample is this times C.
        tolerance: tolerance of the library's own stopping rule.
        cores: number of cores to use.

    Raises:
        UsageError: the library is not installed.
    """
    check_solver(solver, positive_weight)

    def fit(job: tuple[float, int]) -> Fit:
        cost, problem = job
        rows = np.flatnonzero(signs[problem])
        x, y = features[rows], signs[problem, rows]
        if solver == "sklearn":
            w = fit_linearsvc(x, y, cost, positive_weight, tolerance=tolerance)
        else:
            w = fit_cyanure(x, y, cost, positive_weight, tolerance=tolerance, threads=cores)
        return Fit(problem, cost, w, certificate(w, x, y, cost, positive_weight)[1])

    jobs = [(cost, problem) for cost in costs for problem in range(len(signs))]
    at_once = min(cores, max(1, _MEMORY // (_BYTES * max(features.size, 1))))
    pool = ThreadPoolExecutor(at_once if solver == "sklearn" else 1)
    try:
        yield from pool.map(fit, jobs)  # LIBLINEAR releases the GIL
    finally:
        pool.shutdown(cancel_futures=True)
