"""One Newton step of softmax regression: its direction, its length, and the certificate.

Shapes: n samples, d coordinates, K classes; a point is (d + 1, K), with the intercept last.
"""

from __future__ import annotations

import torch

from fastrot.solvers.centred import Centred

_CG_STEPS = 400
_LINE_STEPS = 30
_FLAT = 1e-9  # of the largest curvature: a direction of the classes without any, such as a shift


class Point:
    """The solver's position, with everything computed there.

    Args:
        x: features.
        targets: class of each sample, of shape (n,), int64; every class occurs.
        v: coordinates and intercepts of shape (d + 1, K), float64.
        z: logits of shape (n, K), float64.

    Attributes:
        x: features.
        v: the given tensor; ``move`` writes into it.
        probabilities: softmax of the logits, of shape (n, K), float64.
    """

    def __init__(self, x: Centred, targets: torch.Tensor, v: torch.Tensor, z: torch.Tensor) -> None:
        self.x, self.v, self._z = x, v, z
        self._targets = targets[:, None]
        self._counts = torch.bincount(targets, minlength=v.shape[1]).double()
        ones = torch.zeros_like(z).scatter_(1, self._targets, 1.0)
        self._class_sums = x.transposed(ones)  # X^T Y
        self._look()

    @classmethod
    def start(cls, x: Centred, targets: torch.Tensor, classes: int) -> Point:
        """Return the starting point: weights of zero, and the best intercepts for them."""
        v = torch.zeros(x.dim + 1, classes, dtype=torch.float64, device=x.device)
        v[-1] = (torch.bincount(targets, minlength=classes) / len(targets)).log()
        return cls(x, targets, v, v[-1].repeat(len(targets), 1))

    def change(self, step: torch.Tensor) -> torch.Tensor:
        """Return the change of the logits by a step, of shape (n, K), float64."""
        return self.x.product(step[:-1]) + step[-1]

    def move(self, step: torch.Tensor, length: float, change: torch.Tensor | None = None) -> None:
        """Move along a step of shape (d + 1, K)."""
        self.v += length * step
        self._z += length * (self.change(step) if change is None else change)
        self._look()

    def _look(self) -> None:
        log_p = self._z.log_softmax(dim=1)
        self._loss = -float(log_p.gather(1, self._targets).mean())
        self.probabilities = log_p.exp_()
        sums = self.probabilities.sum(dim=0)
        self._balance = (sums - self._counts) / self.x.num_samples
        error = self.probabilities.scatter_add(
            1, self._targets, self._z.new_full((1, 1), -1.0).expand(len(self._z), 1)
        )
        self._slope = self.x.transposed(error) / self.x.num_samples

    def gradient(self, strength: float) -> torch.Tensor:
        """Return the gradient of P, of shape (d + 1, K), float64."""
        return torch.cat([self._slope + strength * self.v[:-1], self._balance[None]])

    def certificate(self, strength: float) -> tuple[float, float]:
        """Return P, and the duality gap relative to it.

        Because of the intercepts, the mean probabilities are nearly the shares of the classes. To
        make them exactly equal, every row is mixed with the same row, with the smallest weight
        that leaves no negative number.
        """
        n, a = self.x.num_samples, self.probabilities
        objective = self._loss + 0.5 * strength * float(self.v[:-1].square().sum())
        sums = self._counts + n * self._balance
        mixed = max(0.0, float(((sums - self._counts) / sums).max()))
        slope = self._slope
        if mixed:
            row = (self._counts - (1 - mixed) * sums).clamp(min=0) / (mixed * n)
            a = (1 - mixed) * a + mixed * row
            # The mean of the features is zero, so a row shared by all changes nothing else.
            slope = (1 - mixed) * slope - mixed * self._class_sums / n
        entropy = float(torch.special.entr(a).sum()) / n
        dual = entropy - 0.5 / strength * float(slope.square().sum())
        return objective, (objective - dual) / objective if objective > 0 else 0.0

    def along(
        self, t: float, strength: float, step: torch.Tensor, change: torch.Tensor
    ) -> tuple[float, float]:
        """Return the first and second derivative of P(v + t step) in t."""
        p = (self._z + t * change).softmax(dim=1)
        mean = (p * change).sum(dim=1)
        own = change.gather(1, self._targets)[:, 0]
        spread = (p * (change - mean[:, None]).square()).sum(dim=1)
        linear = float((self.v[:-1] * step[:-1]).sum())
        quadratic = float(step[:-1].square().sum())
        slope = float((mean - own).mean()) + strength * (linear + t * quadratic)
        return slope, float(spread.mean()) + strength * quadratic


def step_length(point: Point, strength: float, step: torch.Tensor, change: torch.Tensor) -> float:
    """Return a t that roughly minimises P(v + t step), by Newton's method within a bracket."""
    first, _ = point.along(0.0, strength, step, change)
    t, low, high = 1.0, 0.0, float("inf")
    for _ in range(_LINE_STEPS):
        slope, bend = point.along(t, strength, step, change)
        if abs(slope) <= 0.2 * abs(first):
            break
        low, high = (t, high) if slope < 0 else (low, t)
        new = t - slope / bend if bend > 0 else float("inf")
        if not low < new < min(high, 4 * t):
            new = 0.5 * (low + high) if high < float("inf") else 2 * t
        t = new
    return t


def newton_step(
    point: Point, strength: float, shrink: float, dtype: torch.dtype
) -> tuple[torch.Tensor, int]:
    """Solve H step = -gradient until the residual has shrunk by a factor.

    Args:
        point: current point.
        strength: s.
        shrink: ratio of the final to the initial residual, in the norm of the preconditioner.
        dtype: dtype of the computation.

    Returns:
        The step, of shape (d + 1, K), float64, and the number of products with H.
    """
    hessian = _Hessian(point, strength, dtype)
    r = -point.gradient(strength)
    scale = float(r.abs().max()) or 1.0  # tiny numbers would vanish in float32
    r = (r / scale).to(dtype)
    step = torch.zeros_like(r)
    z = hessian.precondition(r)
    rho = _dot(r, z)
    enough, p, used = shrink**2 * rho, z, 0
    while rho > enough and used < _CG_STEPS:
        q = hessian.product(p)
        used += 1
        curve = _dot(p, q)
        if not curve > 0:
            break
        step += (rho / curve) * p
        r_next = r - (rho / curve) * q
        z = hessian.precondition(r_next)
        rho_next = _dot(r_next, z)
        # Polak and Ribiere's rule tolerates the rounding of float32.
        p = z + max(0.0, (rho_next - _dot(r, z)) / rho) * p
        r, rho = r_next, rho_next
    return scale * step.double(), used


class _Hessian:
    """The second derivative of P at a point, and an approximate inverse, in one precision."""

    def __init__(self, point: Point, strength: float, dtype: torch.dtype) -> None:
        self._x, self._strength = point.x, strength
        n, a = point.x.num_samples, point.probabilities
        self._a = a.to(dtype)
        curvature, turn = torch.linalg.eigh((torch.diag(a.sum(dim=0)) - a.T @ a) / n)
        curvature = curvature.clamp(min=0)
        self._turn = turn.to(dtype)
        values, self._vectors, tail = point.x.principal(dtype)
        leading = 1 / (strength + values[:, None] * curvature)
        self._tail: torch.Tensor | None = None
        if tail is not None:
            rest = 1 / (strength + tail * curvature)
            leading = leading - rest
            self._tail = rest.to(dtype)
        self._leading = leading.to(dtype)
        flat = curvature <= _FLAT * curvature.max()
        self._intercept = torch.where(flat, 0, 1 / curvature).to(dtype)

    def product(self, v: torch.Tensor) -> torch.Tensor:
        """Return H v, of shape (d + 1, K)."""
        u = self._x.product(v[:-1]) + v[-1]
        u = self._a * u
        u = u - self._a * u.sum(dim=1, keepdim=True)
        u /= self._x.num_samples
        return torch.cat(
            [self._x.transposed(u) + self._strength * v[:-1], u.sum(dim=0, keepdim=True)]
        )

    def precondition(self, r: torch.Tensor) -> torch.Tensor:
        """Return an approximation of H^-1 r, of shape (d + 1, K)."""
        r = r @ self._turn
        z = self._vectors @ (self._leading * (self._vectors.T @ r[:-1]))
        if self._tail is not None:
            z += self._tail * r[:-1]
        back: torch.Tensor = torch.cat([z, self._intercept * r[-1:]]) @ self._turn.T
        return back


def _dot(u: torch.Tensor, v: torch.Tensor) -> float:
    return float((u * v).sum(dtype=torch.float64))
