"""Softmax (multinomial logistic) regression with an L2 penalty, solved to its optimum.

For labels y and a strength s > 0 the problem is to

    minimise over W, b   P(W, b) = mean_i [log sum_k exp(z_ik) - z_i,y_i] + s/2 |W|^2,
                         z = X W + b,

without a penalty on the intercept b: the problem of scikit-learn's LogisticRegression with
C = 1 / (n s), and of cyanure's ``multiclass-logistic`` with ``penalty="l2"`` and lambda_1 = s. A
class without samples has no optimum (its intercept would decrease forever); it is excluded, and
its logit is minus infinity.

The method is Newton's. Conjugate gradients in float32 find the step; gradients, the step length
and all reported values are float64. The preconditioner is the Hessian as it would be if all samples
had the mean curvature: the Kronecker product of the covariance of the features, whose leading
eigenvectors are computed once, and a K x K matrix. The dual bounds the distance from the optimum:
any rows a_i of probabilities whose mean is the fraction of each class give

    D(a) = mean_i H(a_i) - s/2 |W(a)|^2  <=  min P,   W(a) = X^T (Y - a) / (n s),

where H is the entropy and Y the labels as rows of 0 and 1; the softmax of z is nearly such an a.

Shapes: n samples, D dimensions, d coordinates (``Centred``), C classes, K of them present.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fastrot.solvers.centred import Centred
from fastrot.solvers.softmax_newton import Point, newton_step, step_length

_NEWTON_STEPS = 100
_LEAST_DECREASE = 1e-9  # relative decrease of the objective below which float32 is exhausted
_LOOSEST = 0.2  # factor by which conjugate gradients shrink the gradient, at least


@dataclass(frozen=True)
class Solution:
    """The optimum for one strength.

    Attributes:
        strength: s.
        weight: W of shape (D, C), float64; zero for a class without samples.
        intercept: b of shape (C,), float64; minus infinity for a class without samples.
        objective: P(W, b).
        gap: duality gap relative to the objective, a bound on its distance from the minimum.
        newton_steps: Newton steps from the previous solution.
        products: number of products with the Hessian.
    """

    strength: float
    weight: torch.Tensor
    intercept: torch.Tensor
    objective: float
    gap: float
    newton_steps: int
    products: int

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits, of shape (m, C), float32, for features of shape (m, D)."""
        return features.float() @ self.weight.float() + self.intercept.float()


def solve_path(
    features: torch.Tensor,
    labels: torch.Tensor,
    strengths: Sequence[float],
    *,
    classes: int | None = None,
    tolerance: float = 1e-6,
) -> Iterator[Solution]:
    """Yield the solution for each strength, in decreasing order; each starts from the previous one.

    A solution is done when its gap is at most ``tolerance``, or when rounding stops it; its ``gap``
    is the one that was reached.

    Args:
        features: X of shape (n, D), any float dtype, on the device that is to compute. They need
            as much memory again as they take in float32, or three times that if it is at most
            1 GiB.
        labels: of shape (n,), integers from 0.
        strengths: values of s, positive.
        classes: C; None: the largest label plus 1.
        tolerance: relative duality gap, positive.

    Raises:
        ValueError: shapes do not fit, a label is out of range, or a value is not positive.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> (solution,) = solve_path(x, torch.tensor([0, 0, 1, 1]), [0.1])
        >>> solution.logits(x).argmax(dim=1).tolist()
        [0, 0, 1, 1]
    """
    if not all(0 < value < math.inf for value in (*strengths, tolerance)):
        raise ValueError(
            f"strengths={list(strengths)}, tolerance={tolerance} must be positive and finite"
        )
    classes = _checked(features, labels, classes)
    x = Centred(features)
    present, targets = torch.unique(labels.to(x.device), return_inverse=True)
    point = Point.start(x, targets, len(present))
    for strength in sorted(strengths, reverse=True):
        newton_steps, products = _solve(point, strength, tolerance)
        objective, gap = point.certificate(strength)
        weight = point.v.new_zeros(len(x.mean), classes)
        weight[:, present] = x.weights(point.v[:-1])
        intercept = point.v.new_full((classes,), -math.inf)
        intercept[present] = point.v[-1] - x.mean @ weight[:, present]
        yield Solution(strength, weight, intercept, objective, gap, newton_steps, products)


def certificate(
    features: torch.Tensor,
    labels: torch.Tensor,
    strength: float,
    weight: torch.Tensor,
    intercept: torch.Tensor,
) -> tuple[float, float]:
    """Return the objective and relative duality gap of a solution, whoever solved it.

    Args:
        features: of shape (n, D).
        labels: of shape (n,), integers from 0.
        strength: s.
        weight: of shape (D, C).
        intercept: of shape (C,); ignored for classes without samples.

    Raises:
        ValueError: shapes do not fit, or a label is out of range.
    """
    classes = _checked(features, labels, weight.shape[1])
    if weight.shape[0] != features.shape[1] or intercept.shape != (classes,):
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} and intercept of shape "
            f"{tuple(intercept.shape)} must be ({features.shape[1]}, C) and (C,)"
        )
    x = Centred(features, span=False)
    present, targets = torch.unique(labels.to(x.device), return_inverse=True)
    point = Point.start(x, targets, len(present))
    w = weight.to(x.device).double()[:, present]
    b = intercept.to(x.device).double()[present] + x.mean @ w
    point.move(torch.cat([w, b[None]]) - point.v, 1.0)
    return point.certificate(strength)


def _checked(features: torch.Tensor, labels: torch.Tensor, classes: int | None) -> int:
    """Return C after checking that the labels fit the features."""
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features of shape {tuple(features.shape)} and labels of shape "
            f"{tuple(labels.shape)} must be (samples, D) and (samples,)"
        )
    if labels.dtype.is_floating_point or not len(labels):
        raise ValueError(f"labels of {labels.dtype} ({len(labels)} of them) must be integers")
    low, high = int(labels.min()), int(labels.max())
    classes = high + 1 if classes is None else classes
    if low < 0 or high >= classes:
        raise ValueError(f"labels from {low} to {high} must be from 0 to {classes - 1}")
    return classes


def _solve(point: Point, strength: float, tolerance: float) -> tuple[int, int]:
    """Take Newton steps until the gap is small; return the numbers of steps and products."""
    products, dtype = 0, torch.float32
    objective, gap = point.certificate(strength)
    for taken in range(_NEWTON_STEPS):
        if gap <= tolerance:
            return taken, products
        # Steps far from the optimum are computed loosely, the last one as exactly as needed.
        shrink = max(min(_LOOSEST, math.sqrt(gap)), 0.5 * math.sqrt(tolerance / gap))
        step, used = newton_step(point, strength, min(shrink, _LOOSEST), dtype)
        products += used
        change = point.change(step)
        point.move(step, step_length(point, strength, step, change), change)
        before, last = objective, gap
        objective, gap = point.certificate(strength)
        if before - objective <= _LEAST_DECREASE * before and gap > 0.5 * last:
            if dtype == torch.float64:
                return taken + 1, products
            dtype = torch.float64
    return _NEWTON_STEPS, products
