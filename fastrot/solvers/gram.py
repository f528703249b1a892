"""The Gram matrix of samples with an intercept, as products with it.

Where samples outnumber dimensions the matrix is never formed: K v is X (X^T v), which costs less,
and solving over K is then solving in the primal.

A ``Gram`` is one matrix, or a stack of G of equal size: those of small parts of the samples.

Shapes: n samples, D dimensions, P rows of a product, r leading eigenvectors. ``...`` is G for a
stack, and nothing for one matrix.
"""

from __future__ import annotations

import math

import torch

_CHUNK = 1024  # dimensions whose products float32 adds up, before float64 does
_LEAST_PRODUCTS = 6.0  # of conjugate gradients, for the best conditioned of problems
_FACTOR_COST = 2.0  # of A^3 / 3 operations of a factorisation, in those of a large product
# Leading eigenvectors, more to find them with, and passes; small matrices are soon factored.
_SPECTRUM, _STACK_SPECTRUM = (128, 16, 4), (16, 8, 2)


class Gram:
    """K = X X^T + 1 of n samples, of shape (..., n, n).

    Args:
        features: X of shape (n, D), float32 or float64, on the device that is to compute.
        square: form the matrix; None: where 2 D >= n, when that makes products cheaper.

    Attributes:
        num_samples: n, of each.
        is_stack: whether it is several matrices.
        device: of the features.

    Raises:
        ValueError: not a matrix with at least one row, or not finite.
    """

    def __init__(self, features: torch.Tensor, *, square: bool | None = None) -> None:
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features of shape {tuple(features.shape)} must be (samples, D)")
        if not torch.isfinite(features).all():
            raise ValueError("features must be finite")
        self.num_samples, self.device = len(features), features.device
        self.is_stack = False
        if square is None:
            square = 2 * features.shape[1] >= self.num_samples
        self._square: dict[torch.dtype, torch.Tensor] = {}
        self._tall: dict[torch.dtype, torch.Tensor] = {}
        self._leading: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor]] = {}
        if square:
            self._square[torch.float64] = _square(features)
        else:
            ones = features.new_ones(self.num_samples, 1)
            self._tall[torch.float64] = torch.cat([features, ones], dim=1).double()

    def restricted(self, rows: torch.Tensor) -> Gram:
        """The Gram matrices of G parts of the samples, given as rows of shape (G, m), int64."""
        part = self._empty(rows.shape[1])
        if self._square:
            whole = self._square[torch.float64]
            part._square[torch.float64] = whole[rows[:, :, None], rows[:, None, :]]
            return part
        tall = self._tall[torch.float64][rows]
        if 2 * tall.shape[2] >= rows.shape[1]:  # formed, as K of so few samples alone would be
            part._square[torch.float64] = tall @ tall.mT
        else:
            part._tall[torch.float64] = tall
        return part

    def chosen(self, members: torch.Tensor) -> Gram:
        """Some matrices of a stack, by their numbers."""
        part = self._empty(self.num_samples)
        for ours, theirs in ((self._square, part._square), (self._tall, part._tall)):
            theirs.update({dtype: matrices[members] for dtype, matrices in ours.items()})
        for dtype, (values, vectors) in self._leading.items():
            part._leading[dtype] = values[members], vectors[members]
        return part

    def parts(self, group: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """K of some samples, of shape (Q, m, m); the caller may write into it.

        Args:
            group: which matrix of the stack, of shape (Q,); of one matrix: zeros.
            rows: of shape (Q, m).
            dtype: float32 or float64.
        """
        whole = _in(self._square, dtype)
        pairs = rows[:, :, None], rows[:, None, :]
        return whole[pairs] if whole.ndim == 2 else whole[group[:, None, None], *pairs]

    def _empty(self, num_samples: int) -> Gram:
        part = object.__new__(Gram)
        part.num_samples, part.device, part.is_stack = num_samples, self.device, True
        part._square, part._tall, part._leading = {}, {}, {}
        return part

    def prefers_factor(self, weight: float, sizes: torch.Tensor) -> bool:
        """Whether factorising the parts of K costs less than conjugate gradients in 1 + weight K.

        Never where the matrix is not formed: there is nothing better than products then.

        Args:
            weight: the largest of the problems.
            sizes: samples in each problem's part, any shape and dtype.
        """
        if not self._square:
            return False
        factors = _FACTOR_COST / 3 * float(sizes.double().pow(3).sum())
        products = 2 * self.num_samples**2 * sizes.numel()
        if factors <= _LEAST_PRODUCTS * products:
            return True
        values, _ = self._eigenvectors(torch.float32)
        condition = 1 + weight * float(values[..., -1].max())
        return factors <= _LEAST_PRODUCTS * math.sqrt(condition) * products

    def product(self, v: torch.Tensor) -> torch.Tensor:
        """V K of shape (..., P, n) for v of that shape, in the dtype of v."""
        if self._square:
            return v @ _in(self._square, v.dtype)
        tall = _in(self._tall, v.dtype)
        return (v @ tall) @ tall.mT

    def precondition(self, v: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """About (1 + weight K)^-1 v, by the leading eigenvectors of K.

        Args:
            v: of shape (..., P, n).
            weight: of shape (..., P, 1), not negative.
        """
        values, vectors = self._eigenvectors(v.dtype)
        share = weight * values[..., None, :]
        return v - ((v @ vectors) * (share / (1 + share))) @ vectors.mT

    def _eigenvectors(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The r largest eigenvalues (..., r), and vectors (..., n, r), by subspace iteration."""
        if dtype not in self._leading:
            few = self.is_stack and bool(self._square)
            rank, more, passes = _STACK_SPECTRUM if few else _SPECTRUM
            rank = min(rank, max(1, self.num_samples // 4))
            width = min(rank + more, self.num_samples)
            # Drawn on the host from a fixed seed: the same on every device and in every run.
            basis = torch.randn(
                self.num_samples, width, dtype=dtype, generator=torch.Generator().manual_seed(0)
            ).to(self.device)
            for _ in range(passes):
                basis = torch.linalg.qr(self.product(basis.mT).mT)[0]
            values, vectors = torch.linalg.eigh(self.product(basis.mT) @ basis)
            order = torch.arange(width - 1, width - 1 - rank, -1, device=self.device)
            self._leading[dtype] = (
                values[..., order].clamp(min=0),
                (basis @ vectors[..., order]).contiguous(),
            )
        return self._leading[dtype]


def _square(features: torch.Tensor) -> torch.Tensor:
    """X X^T + 1 in float64, of products that are fast in the dtype of the features.

    Few dimensions leave K singular, and float32 would show that by negative eigenvalues.
    """
    if features.shape[1] <= _CHUNK:
        wide = features.double()
        return wide @ wide.T + 1
    total = torch.ones(len(features), len(features), dtype=torch.float64, device=features.device)
    for start in range(0, features.shape[1], _CHUNK):
        part = features[:, start : start + _CHUNK]
        total += part @ part.T
    return total


def _in(matrices: dict[torch.dtype, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    if dtype not in matrices:
        matrices[dtype] = matrices[torch.float64].to(dtype)
    return matrices[dtype]
