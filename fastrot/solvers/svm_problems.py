"""Squared-hinge SVMs over Gram matrices: the steps of many problems at once.

See ``gram_svm.py`` for the problem and the method. Problems are rows of matrices, so that a step
is a few products: G groups of P problems, each group with its own Gram matrix.

Shapes: G groups, P problems, n samples. G is 1 for one matrix that is not a stack.
"""

from __future__ import annotations

import torch

from fastrot.solvers.gram import Gram

_FORCING = 0.1  # factor by which conjugate gradients shrink the gradient between updates of the set
_CG_STEPS = 400
_NEWTON_STEPS = 60
_LEAST_DECREASE = 1e-12
_LEAST_GAIN = 0.7  # largest ratio of gaps accepted for a step that does not lower the objective
_SEEN = 4.0  # rounding errors below which a product of two vectors is only rounding
_LINE_STEPS = 40
_LONGEST = 16.0  # a Newton step has length 1; a length beyond this is only rounding
_FACTORED_AT_ONCE = 2**22  # elements of the systems that are factored together


class SvmProblems:
    """Problems and the state of their solution.

    Args:
        gram: K of each group.
        signs: of shape (G, P, n).
        cost: C of every sample, 0 outside the problem, of shape (G, P, n).
        b: starting point, of shape (G, P, n), float64.
        f: K b.

    Attributes:
        b: current coefficients.
        f: K b.
        objective: of shape (G, P), float64.
        gap: relative duality gap, of shape (G, P), float64.
    """

    def __init__(
        self,
        gram: Gram,
        signs: torch.Tensor,
        cost: torch.Tensor,
        b: torch.Tensor,
        f: torch.Tensor,
    ) -> None:
        self.gram, self.y, self.c2 = gram, signs.double(), 2 * cost
        self.b, self.f = b.clone(), f.clone()
        self.objective = torch.full(b.shape[:2], float("inf"), dtype=torch.float64, device=b.device)
        self.gap = self.objective.clone()
        self._dual = torch.zeros_like(self.gap)  # the best bound so far remains valid

    def solve(self, tolerance: float) -> None:
        """Take steps until every gap is small, or rounding stops them."""
        # Float32 is mostly enough: the next step handles what a step leaves of the gradient.
        # Not if K is singular relative to the cost: what float32 cannot resolve never shrinks then.
        for dtype in (torch.float32, torch.float64):
            self._approach(tolerance, dtype)
            if (self.gap <= tolerance).all():
                break
        self.f = self.gram.product(self.b)  # without the accumulated rounding of the steps
        self.objective = _primal(self.y, self.c2, self.b, self.f)
        self._set_gap(slice(None))

    def _approach(self, tolerance: float, dtype: torch.dtype) -> None:
        """Take steps for problems with a large gap, until they no longer help.

        Steps are computed in ``dtype``. The live problems form a rectangle, all of ``problems`` in
        all of ``groups``; finished problems within it do not change.
        """
        open_ = ~(self.gap <= tolerance)
        groups, problems = open_.any(1).nonzero()[:, 0], open_.any(0).nonzero()[:, 0]
        gram = self.gram if len(groups) == len(open_) else self.gram.chosen(groups)
        for number in range(_NEWTON_STEPS):
            live = groups[:, None], problems
            gap_before, objective_before = self.gap[live], self.objective[live]
            # For a direct step the margins violated at a smaller cost are the better start.
            self._settle(gram, live, adopt=number > 0 or not self._factors(live))
            keep = ~(self.gap[live] <= tolerance)
            if number > 0:
                gain = objective_before - self.objective[live]
                # At a high cost the dual point converges last.
                keep &= (gain > _LEAST_DECREASE * self.objective[live]) | (
                    self.gap[live] <= _LEAST_GAIN * gap_before
                )
            if not keep.any():
                break
            if not (some := keep.any(1)).all():
                groups, keep, gram = groups[some], keep[some], gram.chosen(some)
            problems, keep = problems[keep.any(0)], keep[:, keep.any(0)]
            live = groups[:, None], problems
            y, c2, b, f = self.y[live], self.c2[live], self.b[live], self.f[live]
            active = c2 * (y * f < 1)
            if self._factors(live):
                step = _direct_step(gram, active, y, b, dtype)
            else:
                r = _gradient(y, c2, f) - b
                step = _newton_step(gram, active.to(dtype), r.to(dtype)).double()
            keep &= step.isfinite().all(-1)
            step = torch.where(keep[..., None], step, 0)
            change = gram.product(step)
            t = _line_search(y, c2, b, f, step, change)[..., None]
            self.b[live], self.f[live] = b + t * step, f + t * change
        else:
            self._settle(gram, (groups[:, None], problems), adopt=True)

    def _factors(self, live: tuple[torch.Tensor, torch.Tensor]) -> bool:
        """Return whether the next step is a direct one."""
        c2 = self.c2[live]
        violated = (c2 > 0) & (self.y[live] * self.f[live] < 1)
        return self.gram.prefers_factor(float(c2.max()), violated.sum(-1))

    def _settle(self, gram: Gram, live: tuple[torch.Tensor, torch.Tensor], *, adopt: bool) -> None:
        """Set objective and gap, with ``adopt`` after replacing b by a better scaled dual point.

        The dual point y a, scaled to the best dual value, is also a primal point: the warm start
        from a smaller cost, where most margins are violated and a grows with C.
        """
        y, c2, b, f = self.y[live], self.c2[live], self.b[live], self.f[live]
        a = _gradient(y, c2, f)
        k_a = gram.product(a)
        total = _dot(a, y)
        curve = _dot(a, k_a) + _dot(a, torch.where(c2 > 0, a / c2, 0))
        scale = torch.where(curve > 0, total / curve, 0)
        self._dual[live] = torch.maximum(self._dual[live], 0.5 * total * scale)
        s = scale[..., None]
        primal, scaled = _primal(y, c2, b, f), _primal(y, c2, s * a, s * k_a)
        better = scaled < primal
        if adopt and better.any():
            self.b[live] = torch.where(better[..., None], s * a, b)
            self.f[live] = torch.where(better[..., None], s * k_a, f)
            primal = torch.where(better, scaled, primal)
        self.objective[live] = primal
        self._set_gap(live)

    def _set_gap(self, live: tuple[torch.Tensor, torch.Tensor] | slice) -> None:
        objective = self.objective[live]
        gap = (objective - self._dual[live]) / objective
        self.gap[live] = torch.where(objective == 0, 0, gap)


def _direct_step(
    gram: Gram, active: torch.Tensor, y: torch.Tensor, b: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return the step to (K + 1 / active) b = y on the set, of shape (G, P, n), float64.

    It serves costs so high that conjugate gradients would take hundreds of products: few samples
    violate their margins then, and factoring their part of K is cheap. Sets are padded with the
    identity to the size of the largest, so that they can be factored together.
    """
    groups, problems, n = active.shape
    group = torch.arange(groups, device=b.device).repeat_interleave(problems)
    inside = active > 0
    kept = torch.where(inside, b, 0)
    short = torch.where(inside, y - gram.product(kept) - kept / torch.where(inside, active, 1), 0)
    weight, wanted = active.reshape(-1, n).to(dtype), short.reshape(-1, n).to(dtype)
    sizes = (weight > 0).sum(1)
    solved = torch.zeros_like(weight)
    at_once = max(1, _FACTORED_AT_ONCE // max(int(sizes.max()), 1) ** 2)
    for rows in sizes.argsort().split(at_once):
        size = int(sizes[rows].max())
        members = (weight[rows] > 0).int().argsort(dim=1, descending=True, stable=True)[:, :size]
        factor = _factor(_system(gram, group[rows], members, weight[rows].gather(1, members)))
        right = wanted[rows].gather(1, members)[..., None]
        found = torch.cholesky_solve(right, factor)
        solved[rows] = solved[rows].scatter(1, members, found[..., 0])
    return kept - b + solved.view_as(b)


def _system(
    gram: Gram, group: torch.Tensor, members: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Return K + 1 / weight for members in the set, the identity elsewhere, in weight's dtype.

    Args:
        gram: K of each group.
        group: of shape (Q,).
        members: of shape (Q, m).
        weight: of shape (Q, m), 0 where a member is not in the set.
    """
    system = gram.parts(group, members, weight.dtype)
    inside = weight > 0
    if not inside.all():
        system *= inside[:, :, None] & inside[:, None, :]
    system.diagonal(dim1=1, dim2=2).add_(torch.where(inside, 1 / weight, 1))
    return system


def _factor(system: torch.Tensor) -> torch.Tensor:
    """Return Cholesky factors (Q, m, m), with a larger diagonal if rounding requires it."""
    factor: torch.Tensor
    factor, failed = torch.linalg.cholesky_ex(system)
    slack = torch.finfo(system.dtype).eps * system.diagonal(dim1=1, dim2=2).sum(1)
    while failed.any():
        system.diagonal(dim1=1, dim2=2).add_(torch.where(failed > 0, slack, 0)[:, None])
        factor, failed = torch.linalg.cholesky_ex(system)
        slack = 10 * slack
    return factor


def _newton_step(gram: Gram, active: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Solve (1 + active K) step = r loosely; return the step, of shape (G, P, n)."""
    step = torch.zeros_like(r)
    weight = active.mean(dim=-1, keepdim=True)
    z = gram.precondition(r, weight)
    k_z = gram.product(z)
    rho = _dot(r, k_z)
    enough = _FORCING**2 * rho
    p, k_p = z, k_z
    for _ in range(_CG_STEPS):
        q = p + active * k_p
        curve = _dot(k_p, q)
        # A row that is done, or whose residual is only rounding in this dtype, does not move.
        seen = _SEEN * torch.finfo(r.dtype).eps * (_dot(r, r) * _dot(k_z, k_z)).sqrt()
        moves = (rho > enough) & (rho > seen) & (curve > 0)
        if not moves.any():
            break
        length = torch.where(moves, rho / curve, 0)[..., None].to(r.dtype)
        step = step + length * p
        r_next = r - length * q
        z = gram.precondition(r_next, weight)
        k_z = gram.product(z)
        rho_next = _dot(r_next, k_z)
        # Polak and Ribiere's rule tolerates inexact eigenvectors.
        turn = (rho_next - _dot(r, k_z)) / torch.where(moves, rho, 1)
        turn = torch.where(moves, turn.clamp(min=0), 0)[..., None].to(r.dtype)
        p, k_p = z + turn * p, k_z + turn * k_p
        r, rho = r_next, torch.where(moves, rho_next, 0)
    return step


def _dot(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the products row by row, summed in float64, of shape (G, P)."""
    return (u * v).sum(dim=-1, dtype=torch.float64)


def _gradient(y: torch.Tensor, c2: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """Return 2 C max(0, 1 - y f) y, of shape (G, P, n): the value of b at the optimum."""
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
    """Return the t > 0 that minimises P(b + t step) for each row, of shape (G, P), float64.

    The slope is increasing and piecewise linear in t: Newton's method within a bracket finds it.
    """
    linear, quadratic = _dot(step, f), _dot(step, change)
    t = torch.ones_like(linear)
    low, high = torch.zeros_like(t), torch.full_like(t, _LONGEST)
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
