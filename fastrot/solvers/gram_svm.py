"""Squared-hinge SVMs, many at once, over one shared Gram matrix.

A problem has signs y (1, -1, or 0: not in it), a cost C_i a sample, and asks for

    minimise over w   P(w) = 1/2 |w|^2 + sum_i C_i max(0, 1 - y_i w.x_i)^2

where a feature that is always 1 stands for the intercept, which is so regularised, too: the
problem of LIBLINEAR (``-s 1`` and ``-s 2``; scikit-learn's LinearSVC), hence of the published
VOC07 protocol. Writing w as sum_i b_i x_i, all that is needed of the samples is K = X X^T.

Every class, cost and fold of a protocol is one more row of a matrix, so the work is products of a
tall matrix with K. Each row takes Newton steps on its set of violated margins (Keerthi and
DeCoste, 2005; Chapelle, 2007), found by conjugate gradients in the inner product of K, whose
iterates are those of conjugate gradients on w and descend after any number of steps. The leading
eigenvectors of K, which all rows share, precondition them; the line search is exact. A row is
done when its duality gap says so: with a_i = 2 C_i max(0, 1 - y_i f_i),

    D(a) = sum_i a_i - 1/2 a^T (y K y) a - sum_i a_i^2 / (4 C_i)   <=   min P.

Float32 takes the steps; float64 looks at every row once, and goes on where rounding stopped it.

Shapes: P problems, n samples, r leading eigenvectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fastrot.solvers.gram import Gram

_FORCING = 0.1  # by how much conjugate gradients shrink the gradient before the set is looked at
_CG_STEPS = 400
_NEWTON_STEPS = {torch.float32: 12, torch.float64: 60}
_LEAST_DECREASE = {torch.float32: 1e-6, torch.float64: 1e-12}
_LINE_STEPS = 40


@dataclass(frozen=True)
class Solution:
    """The solved problems of one cost.

    Attributes:
        cost: C of negative samples.
        coefficients: b of shape (P, n), float64: w = sum_i b_i x_i.
        decision: f = K b of shape (P, n), float64, of all samples, also those not in a problem.
        objective: P(w) of shape (P,), float64.
        gap: duality gap relative to the objective, of shape (P,): the objective is no further
            than this from the least one.
    """

    cost: float
    coefficients: torch.Tensor
    decision: torch.Tensor
    objective: torch.Tensor
    gap: torch.Tensor


def solve_path(
    gram: Gram,
    signs: torch.Tensor,
    costs: Sequence[float],
    *,
    positive_weight: float = 1.0,
    tolerance: float = 1e-6,
) -> Iterator[Solution]:
    """Solve all problems for each cost, in increasing order; each starts from the one before.

    Args:
        gram: of all samples.
        signs: of shape (P, n), any dtype: 1, -1, or 0 for a sample that is not in the problem.
        costs: values of C, positive.
        positive_weight: C of a positive sample is this times C.
        tolerance: relative duality gap at which a problem is done.

    Raises:
        ValueError: shapes do not fit, or a cost is not positive.
    """
    if signs.ndim != 2 or signs.shape[1] != gram.num_samples:
        raise ValueError(
            f"signs of shape {tuple(signs.shape)} must be (problems, {gram.num_samples} samples)"
        )
    if not all(0 < cost < float("inf") for cost in costs):
        raise ValueError(f"costs={list(costs)} must be positive and finite")
    b = torch.zeros(signs.shape, dtype=torch.float64, device=gram.device)
    signs = signs.to(gram.device)
    for cost in sorted(costs):
        c = torch.where(signs > 0, positive_weight * cost, cost).double() * (signs != 0)
        rows = _Rows(gram, signs, c, b, torch.float64)
        if not rows.factors(rows.y, rows.c2, rows.f):
            _Rows(gram, signs, c, b, torch.float32).solve(tolerance)
            rows = _Rows(gram, signs, c, b, torch.float64)
        rows.solve(tolerance)
        yield Solution(cost, b.clone(), rows.f, rows.objective, rows.gap)


class _Rows:
    """Problems of one cost in one precision.

    Args:
        gram: K.
        signs: of shape (P, n).
        cost: C of every sample, 0 outside of the problem, of shape (P, n).
        b: where to start, of shape (P, n), float64; ``solve`` writes into it where it ends.
        dtype: of the computation.
    """

    def __init__(
        self,
        gram: Gram,
        signs: torch.Tensor,
        cost: torch.Tensor,
        b: torch.Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.gram, self.dtype, self.start = gram, dtype, b
        self.y, self.c2 = signs.to(dtype), (2 * cost).to(dtype)
        self.b = b.to(dtype, copy=True)
        self.f = gram.product(self.b)  # not the f of another precision, which seems to be better
        self.objective = torch.full_like(b[:, 0], float("inf"))
        self.gap = self.objective.clone()

    def solve(self, tolerance: float) -> None:
        """Step until every gap is small, or rounding stops it."""
        live = torch.arange(len(self.b), device=self.b.device)
        for _ in range(_NEWTON_STEPS[self.dtype]):
            y, c2, b, f = self.y[live], self.c2[live], self.b[live], self.f[live]
            before = self._settle(live, y, c2, b, f)
            stalled = before - self.objective[live] <= (
                _LEAST_DECREASE[self.dtype] * self.objective[live]
            )
            keep = (self.gap[live] > tolerance) & ~stalled
            if not keep.all():
                live, y, c2 = live[keep], y[keep], c2[keep]
            if not len(live):
                break
            b, f = self.b[live], self.f[live]
            active = c2 * (y * f < 1)
            if self.factors(y, c2, f):
                if self.dtype == torch.float32:
                    break
                step, change = self._direct_step(active, y, b)
            else:
                step, change = self._newton_step(active, _gradient(y, c2, f) - b)
            t = _line_search(y, c2, b, f, step, change)[:, None].to(self.dtype)
            self.b[live] = b + t * step
            # From b again: what t * change adds up to drifts away from it in float32.
            self.f[live] = self.gram.product(self.b[live])
        else:
            self._settle(live, self.y[live], self.c2[live], self.b[live], self.f[live])
        self.start.copy_(self.b)

    def factors(self, y: torch.Tensor, c2: torch.Tensor, f: torch.Tensor) -> bool:
        """Whether the next step is one for ``_direct_step``, which float64 takes."""
        return self.gram.prefers_factor(float(c2.max()), (c2 * (y * f < 1) > 0).sum(1))

    def _settle(
        self,
        live: torch.Tensor,
        y: torch.Tensor,
        c2: torch.Tensor,
        b: torch.Tensor,
        f: torch.Tensor,
    ) -> torch.Tensor:
        """Take the better of b and the scaled dual point, and set objective and gap.

        The dual point y a, scaled to the best dual value, is a primal point, too: the warm start
        from a smaller cost, where most margins are violated and a grows with C. Returns the
        objectives before.
        """
        a = _gradient(y, c2, f)
        k_a = self.gram.product(a)
        total = _dot(a, y)
        curve = _dot(a, k_a) + _dot(a, torch.where(c2 > 0, a / c2, 0))
        scale = torch.where(curve > 0, total / curve, 0)
        dual = 0.5 * total * scale
        s = scale[:, None].to(self.dtype)
        primal, scaled = _primal(y, c2, b, f), _primal(y, c2, s * a, s * k_a)
        better = scaled < primal
        if better.any():
            self.b[live] = torch.where(better[:, None], s * a, b)
            self.f[live] = torch.where(better[:, None], s * k_a, f)
        before = self.objective[live]
        objective = torch.minimum(primal, scaled)
        self.objective[live] = objective
        self.gap[live] = torch.where(objective > 0, (objective - dual) / objective, 0)
        return before

    def _direct_step(
        self, active: torch.Tensor, y: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The exact step, from (K + 1 / active) b = y on the set; the step and K step, (P, n).

        For costs so high that conjugate gradients would take hundreds of products: few samples
        violate their margins then, and a factorisation of their part of K is cheap.
        """
        step = -b
        for row in range(len(b)):
            members = active[row].nonzero()[:, 0]
            system = self.gram.part(members)
            system.diagonal().add_(1 / active[row, members])
            factor = torch.linalg.cholesky(system)
            solved = torch.cholesky_solve(y[row, members, None], factor)
            step[row, members] += solved[:, 0]
        return step, self.gram.product(step)

    def _newton_step(
        self, active: torch.Tensor, r: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Solve (1 + active K) step = r loosely; the step and K step, each of shape (P, n)."""
        step, change = torch.zeros_like(r), torch.zeros_like(r)
        z = self.gram.precondition(r, active.mean(dim=1, keepdim=True))
        k_z = self.gram.product(z)
        rho = _dot(r, k_z)
        enough = _FORCING**2 * rho
        p, k_p = z, k_z
        for _ in range(_CG_STEPS):
            q = p + active * k_p
            curve = _dot(k_p, q)
            # A row that is done, or has nothing left that float32 can see, stands still.
            moves = (rho > enough) & (curve > 0)
            if not moves.any():
                break
            length = torch.where(moves, rho / curve, 0)[:, None].to(self.dtype)
            step, change = step + length * p, change + length * k_p
            r_next = r - length * q
            z = self.gram.precondition(r_next, active.mean(dim=1, keepdim=True))
            k_z = self.gram.product(z)
            rho_next = _dot(r_next, k_z)
            # Polak and Ribiere's rule forgives that the eigenvectors are not exact.
            turn = (rho_next - _dot(r, k_z)) / torch.where(moves, rho, 1)
            turn = torch.where(moves, turn.clamp(min=0), 0)[:, None].to(self.dtype)
            p, k_p = z + turn * p, k_z + turn * k_p
            r, rho = r_next, torch.where(moves, rho_next, 0)
        return step, change


def _dot(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Row by row, summed in float64, of shape (P,)."""
    return (u * v).sum(dim=1, dtype=torch.float64)


def _gradient(y: torch.Tensor, c2: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """2 C max(0, 1 - y f) y of shape (P, n): the coefficients that b has at the optimum."""
    return c2 * y * (1 - y * f).clamp_(min=0)


def _primal(y: torch.Tensor, c2: torch.Tensor, b: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    hinge = (1 - y * f).clamp_(min=0)
    return 0.5 * (_dot(b, f) + _dot(c2 * hinge, hinge))


def _line_search(
    y: torch.Tensor,
    c2: torch.Tensor,
    b: torch.Tensor,
    f: torch.Tensor,
    step: torch.Tensor,
    change: torch.Tensor,
) -> torch.Tensor:
    """The t > 0 of least P(b + t step) for each row, of shape (P,), float64.

    The slope is increasing and piecewise linear in t: Newton's method, kept in a bracket.
    """
    linear, quadratic = _dot(step, f), _dot(step, change)
    t = torch.ones_like(linear)
    low, high = torch.zeros_like(t), torch.full_like(t, float("inf"))
    for _ in range(_LINE_STEPS):
        hinge = (1 - y * (f + t[:, None].to(f.dtype) * change)).clamp_(min=0)
        weighted = c2 * change
        slope = linear + t * quadratic - _dot(weighted * y, hinge)
        bend = quadratic + _dot(weighted * change, (hinge > 0).to(f.dtype))
        low = torch.where(slope < 0, t, low)
        high = torch.where(slope > 0, t, high)
        new = t - torch.where(bend > 0, slope / bend, 0)
        outside = (new <= low) | (new >= high)
        middle = torch.where(high.isfinite(), 0.5 * (low + high), 2 * t)
        new = torch.where(outside & (slope != 0), middle, new)
        settled = (new - t).abs() <= 1e-3 * t
        t = new
        if settled.all():
            break
    return t
