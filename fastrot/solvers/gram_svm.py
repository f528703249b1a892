"""Squared-hinge SVMs, many at once, over one shared Gram matrix.

A problem has signs y (1, -1, or 0: not in it) and a cost C_i per sample, and is to

    minimise over w   P(w) = 1/2 |w|^2 + sum_i C_i max(0, 1 - y_i w.x_i)^2

where a feature that is always 1 represents the intercept, which is therefore regularised too: the
problem of LIBLINEAR (``-s 1`` and ``-s 2``; scikit-learn's LinearSVC), hence of the published
VOC07 protocol. With w written as sum_i b_i x_i, the samples are needed only through K = X X^T.

Every class, cost and fold of a protocol is one more row of a matrix, so the work is products of a
tall matrix with K. Each row takes Newton steps on its set of violated margins (Keerthi and
DeCoste, 2005; Chapelle, 2007), found by conjugate gradients in the inner product of K, whose
iterates equal those of conjugate gradients on w and descend after any number of steps. The leading
eigenvectors of K, shared by all rows, precondition them; the line search is exact. A row is done
when its duality gap is small enough: with a_i = 2 C_i max(0, 1 - y_i f_i),

    D(a) = sum_i a_i - 1/2 a^T (y K y) a - sum_i a_i^2 / (4 C_i)   <=   min P.

Steps are computed in float32 and taken in float64; where float32 makes no progress, they are
computed in float64 too. ``svm_problems.py`` does both.

Shapes: P problems, n samples; G problems of a stack, of m samples each; S costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fastrot.solvers.gram import Gram
from fastrot.solvers.svm_problems import SvmProblems

_TOGETHER = 1.0  # costs up to this are solved at once for small problems, each from scratch
_STACK = {"cpu": 2**21, "cuda": 2**27}  # elements of the matrices that are solved together


@dataclass(frozen=True)
class Solution:
    """Problems on the same samples, solved for one cost.

    Attributes:
        cost: C of negative samples.
        coefficients: b of shape (P, n), float64: w = sum_i b_i x_i.
        decision: f = K b of shape (P, n), float64, for all samples, even those not in a problem.
        objective: P(w) of shape (P,), float64.
        gap: duality gap relative to the objective, of shape (P,): a bound on the objective's
            distance from the minimum, for K as it is in memory.
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
    """Yield the solution of all problems for each cost, in increasing order, with warm starts.

    Args:
        gram: Gram matrix of all samples.
        signs: of shape (P, n), any dtype: 1, -1, or 0 for a sample that is not in the problem.
        costs: values of C, positive.
        positive_weight: C of a positive sample is this times C.
        tolerance: relative duality gap at which a problem is done.

    Raises:
        ValueError: shapes do not fit, or a cost is not positive.
    """
    _check(gram, signs, costs)
    signs = signs.to(gram.device)[None]
    b = f = torch.zeros(signs.shape, dtype=torch.float64, device=gram.device)
    for cost in sorted(costs):
        c = b.new_tensor(cost) * torch.where(signs > 0, b.new_tensor(positive_weight), 1.0)
        c = c * (signs != 0)
        rows = SvmProblems(gram, signs, c, b, f)
        rows.solve(tolerance)
        b, f = rows.b, rows.f
        yield Solution(cost, b[0], f[0], rows.objective[0], rows.gap[0])


@dataclass(frozen=True)
class Stack:
    """Problems with equally many samples, solved for all costs, in the order given.

    Attributes:
        problems: indices of the problems, of shape (G,).
        members: samples in each problem, of shape (G, m).
        coefficients: b of shape (G, S, m), float64: w = sum_i b_i x_i over the members.
        objective: P(w) of shape (G, S), float64.
        gap: as ``Solution.gap``, of shape (G, S).
    """

    problems: torch.Tensor
    members: torch.Tensor
    coefficients: torch.Tensor
    objective: torch.Tensor
    gap: torch.Tensor


def solve_parts(
    gram: Gram,
    signs: torch.Tensor,
    costs: Sequence[float],
    *,
    positive_weight: float = 1.0,
    tolerance: float = 1e-6,
) -> Iterator[Stack]:
    """Solve each problem on its own samples only, for all costs: for many small problems.

    A step on few samples takes longer to start than to compute, so problems of equal size are
    solved at once, for all small costs.

    Args:
        gram: Gram matrix of all samples.
        signs: of shape (P, n), any dtype: 1, -1, or 0 for a sample that is not in the problem.
        costs: S values of C, positive.
        positive_weight: C of a positive sample is this times C.
        tolerance: relative duality gap at which a problem is done.

    Raises:
        ValueError: shapes do not fit, or a cost is not positive.
    """
    _check(gram, signs, costs)
    signs = signs.to(gram.device)
    order = sorted(range(len(costs)), key=costs.__getitem__)
    groups = [[i for i in order if costs[i] <= _TOGETHER]]
    groups += [[i] for i in order[len(groups[0]) :]]
    sizes = (signs != 0).sum(1)
    for size in sizes.unique().tolist():
        at_once = max(1, _STACK[gram.device.type] // max(size, 1) ** 2)
        for problems in (sizes == size).nonzero()[:, 0].split(at_once):
            members = (signs[problems] != 0).nonzero()[:, 1].view(len(problems), size)
            if size == 0:  # w = 0, and nothing is violated
                none = signs.new_zeros((len(problems), len(costs)), dtype=torch.float64)
                yield Stack(problems, members, none[:, :, None][:, :, :0], none, none)
                continue
            parts = gram.restricted(members)
            y = signs[problems].gather(1, members)[:, None]
            b = f = torch.zeros(y.shape, dtype=torch.float64, device=gram.device)
            shape = len(problems), len(costs)
            coefficients = b.new_empty(*shape, size)
            objective, gap = b.new_empty(shape), b.new_empty(shape)
            for group in filter(None, groups):
                cost = b.new_tensor([costs[i] for i in group])[:, None]
                b, f = (start[:, -1:].repeat(1, len(group), 1) for start in (b, f))
                weight = cost * torch.where(y > 0, b.new_tensor(positive_weight), 1.0)
                rows = SvmProblems(parts, y.expand(weight.shape), weight, b, f)
                rows.solve(tolerance)
                b, f = rows.b, rows.f
                coefficients[:, group] = b
                objective[:, group], gap[:, group] = rows.objective, rows.gap
            yield Stack(problems, members, coefficients, objective, gap)


def _check(gram: Gram, signs: torch.Tensor, costs: Sequence[float]) -> None:
    if signs.ndim != 2 or not len(signs) or signs.shape[1] != gram.num_samples:
        raise ValueError(
            f"signs of shape {tuple(signs.shape)} must be (problems, {gram.num_samples} samples)"
        )
    if not all(0 < cost < float("inf") for cost in costs):
        raise ValueError(f"costs={list(costs)} must be positive and finite")
