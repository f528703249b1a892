"""Squared-hinge SVMs over Gram matrices: the steps of many problems at once.

See ``gram_svm.py`` for the problem and the method. Problems are rows of matrices, so that a step
is a few products: G groups, each with a Gram matrix of its own, of P problems.

Shapes: G groups, P problems, n samples. Of one matrix, which is no stack, G is 1.
"""

from __future__ import annotations

import torch

from fastrot.solvers.gram import Gram

_FORCING = 0.1  # by how much conjugate gradients shrink the gradient before the set is looked at
_CG_STEPS = 400
_NEWTON_STEPS = {torch.float32: 12, torch.float64: 60}
_LEAST_DECREASE = {torch.float32: 1e-6, torch.float64: 1e-12}
_LINE_STEPS = 40
_FACTORED_AT_ONCE = 2**22  # elements of the systems that are factored together


class Rows:
    """Problems in one precision.

    Args:
        gram: K of each group.
        signs: of shape (G, P, n).
        cost: C of every sample, 0 outside of the problem, of shape (G, P, n).
        b: where to start, of shape (G, P, n), float64; ``solve`` writes into it where it ends.
        dtype: of the computation.

    Attributes:
        f: K b of shape (G, P, n).
        objective: of shape (G, P), float64.
        gap: relative duality gap, of shape (G, P), float64.
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
        self.objective = torch.full(b.shape[:2], float("inf"), dtype=torch.float64, device=b.device)
        self.gap = self.objective.clone()
        self._dual = torch.zeros_like(self.gap)  # the best bound so far holds for good

    def solve(self, tolerance: float) -> None:
        """Step until every gap is small, or rounding stops it."""
        groups, problems = (torch.arange(size, device=self.b.device) for size in self.gap.shape)
        gram = self.gram
        for _ in range(_NEWTON_STEPS[self.dtype]):
            live = groups[:, None], problems
            before = self._settle(gram, live)
            stalled = before - self.objective[live] <= (
                _LEAST_DECREASE[self.dtype] * self.objective[live]
            )
            keep = (self.gap[live] > tolerance) & ~stalled
            if not keep.any():
                break
            if not (some := keep.any(1)).all():
                groups, keep, gram = groups[some], keep[some], gram.chosen(some)
            problems, keep = problems[keep.any(0)], keep[:, keep.any(0)]
            live = groups[:, None], problems
            y, c2, b, f = self.y[live], self.c2[live], self.b[live], self.f[live]
            active = c2 * (y * f < 1)
            if self.factors(y, c2, f):
                if self.dtype == torch.float32:
                    break
                step, change = _direct_step(gram, active, y, b)
            else:
                step, change = _newton_step(gram, active, _gradient(y, c2, f) - b)
            t = _line_search(y, c2, b, f, step, change)
            # Those that are done stay what they are, also where they stand among others.
            t = torch.where(keep, t, 0)[..., None].to(self.dtype)
            b = b + t * step
            self.b[live] = b
            # From b again: what t * change adds up to drifts away from it in float32.
            self.f[live] = gram.product(b)
        else:
            self._settle(gram, (groups[:, None], problems))
        self.start.copy_(self.b)

    def factors(self, y: torch.Tensor, c2: torch.Tensor, f: torch.Tensor) -> bool:
        """Whether the next step is a direct one, which float64 takes."""
        return self.gram.prefers_factor(float(c2.max()), (c2 * (y * f < 1) > 0).sum(-1))

    def _settle(self, gram: Gram, live: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Take the better of b and the scaled dual point, and set objective and gap.

        The dual point y a, scaled to the best dual value, is a primal point, too: the warm start
        from a smaller cost, where most margins are violated and a grows with C. Returns the
        objectives before.
        """
        y, c2, b, f = self.y[live], self.c2[live], self.b[live], self.f[live]
        a = _gradient(y, c2, f)
        k_a = gram.product(a)
        total = _dot(a, y)
        curve = _dot(a, k_a) + _dot(a, torch.where(c2 > 0, a / c2, 0))
        scale = torch.where(curve > 0, total / curve, 0)
        self._dual[live] = dual = torch.maximum(self._dual[live], 0.5 * total * scale)
        s = scale[..., None].to(self.dtype)
        primal, scaled = _primal(y, c2, b, f), _primal(y, c2, s * a, s * k_a)
        better = scaled < primal
        if better.any():
            self.b[live] = torch.where(better[..., None], s * a, b)
            self.f[live] = torch.where(better[..., None], s * k_a, f)
        before = self.objective[live]
        objective = torch.minimum(primal, scaled)
        self.objective[live] = objective
        self.gap[live] = torch.where(objective > 0, (objective - dual) / objective, 0)
        return before


def _direct_step(
    gram: Gram, active: torch.Tensor, y: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The exact step, from (K + 1 / active) b = y on the set; the step and K step, (G, P, n).

    For costs so high that conjugate gradients would take hundreds of products: few samples
    violate their margins then, and a factorisation of their part of K is cheap. Sets are padded
    with the identity to the size of the largest, to be factored together.
    """
    groups, problems, n = active.shape
    group = torch.arange(groups, device=b.device).repeat_interleave(problems)
    weight, wanted = active.reshape(-1, n), y.reshape(-1, n)
    sizes = (weight > 0).sum(1)
    solved = torch.zeros_like(weight)
    at_once = max(1, _FACTORED_AT_ONCE // max(int(sizes.max()), 1) ** 2)
    for rows in sizes.argsort().split(at_once):
        size = int(sizes[rows].max())
        members = (weight[rows] > 0).int().argsort(dim=1, descending=True, stable=True)[:, :size]
        share = weight[rows].gather(1, members)
        inside = share > 0
        system = gram.parts(group[rows], members)
        if not inside.all():
            system *= inside[:, :, None] & inside[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_(torch.where(inside, 1 / share, 1))
        right = torch.where(inside, wanted[rows].gather(1, members), 0)
        factor = torch.linalg.cholesky(system)
        found = torch.cholesky_solve(right[..., None], factor)[..., 0]
        solved[rows] = solved[rows].scatter(1, members, found)
    step = solved.view_as(b) - b
    return step, gram.product(step)


def _newton_step(
    gram: Gram, active: torch.Tensor, r: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve (1 + active K) step = r loosely; the step and K step, each of shape (G, P, n)."""
    step, change = torch.zeros_like(r), torch.zeros_like(r)
    weight = active.mean(dim=-1, keepdim=True)
    z = gram.precondition(r, weight)
    k_z = gram.product(z)
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
        length = torch.where(moves, rho / curve, 0)[..., None].to(r.dtype)
        step, change = step + length * p, change + length * k_p
        r_next = r - length * q
        z = gram.precondition(r_next, weight)
        k_z = gram.product(z)
        rho_next = _dot(r_next, k_z)
        # Polak and Ribiere's rule forgives that the eigenvectors are not exact.
        turn = (rho_next - _dot(r, k_z)) / torch.where(moves, rho, 1)
        turn = torch.where(moves, turn.clamp(min=0), 0)[..., None].to(r.dtype)
        p, k_p = z + turn * p, k_z + turn * k_p
        r, rho = r_next, torch.where(moves, rho_next, 0)
    return step, change


def _dot(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Row by row, summed in float64, of shape (G, P)."""
    return (u * v).sum(dim=-1, dtype=torch.float64)


def _gradient(y: torch.Tensor, c2: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """2 C max(0, 1 - y f) y of shape (G, P, n): the coefficients that b has at the optimum."""
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
    """The t > 0 of least P(b + t step) for each row, of shape (G, P), float64.

    The slope is increasing and piecewise linear in t: Newton's method, kept in a bracket.
    """
    linear, quadratic = _dot(step, f), _dot(step, change)
    t = torch.ones_like(linear)
    low, high = torch.zeros_like(t), torch.full_like(t, float("inf"))
    for _ in range(_LINE_STEPS):
        hinge = (1 - y * (f + t[..., None].to(f.dtype) * change)).clamp_(min=0)
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
