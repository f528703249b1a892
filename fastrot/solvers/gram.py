"""The Gram matrix of samples with an intercept, and products with it.

If samples far outnumber dimensions the matrix is never formed: K v is X (X^T v), which costs less,
and solving over K then means solving in the primal.

A ``Gram`` is one matrix, or a stack of G equally large matrices of small parts of the samples.

Shapes: n samples, D dimensions, P rows of a product, r leading eigenvectors. ``...`` is G for a
stack, and nothing for one matrix.
"""

from __future__ import annotations

import math

import torch

_CHUNK = 1024  # dimensions whose products are summed in float32 before they are added in float64
_LEAST_PRODUCTS = 6.0  # of conjugate gradients, for the best conditioned problems
_FACTOR_COST = 2.0  # of an operation in a factorisation, relative to one in a large product
# Leading eigenvectors, extra vectors to find them, and passes; small matrices are cheap to factor.
_SPECTRUM, _STACK_SPECTRUM = (128, 16, 4), (16, 8, 2)


class Gram:
    """K = X X^T + 1 of n samples, of shape (..., n, n).

    Args:
        features: X of shape (n, D), float32 or float64, on the device that is to compute.
        square: form the matrix; None: if 2 D >= n, because products are cheaper then.

    Attributes:
        num_samples: n, of each matrix.
        is_stack: whether there are several matrices.
        device: device of the features.

    Raises:
        ValueError: the features are not a matrix with at least one row, or not finite.
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
        """Return the Gram matrices of G parts of the samples, given as rows (G, m), int64."""
        part = self._empty(rows.shape[1])
        if self._square:
            whole = self._square[torch.float64]
            part._square[torch.float64] = whole[rows[:, :, None], rows[:, None, :]]
            return part
        tall = self._tall[torch.float64][rows]
        if 2 * tall.shape[2] >= rows.shape[1]:  # formed, by the rule of ``square`` for few samples
            part._square[torch.float64] = tall @ tall.mT
        else:
            part._tall[torch.float64] = tall
        return part

    def chosen(self, members: torch.Tensor) -> Gram:
        """Return some matrices of a stack, by index."""
        part = self._empty(self.num_samples)
        for ours, theirs in ((self._square, part._square), (self._tall, part._tall)):
            theirs.update({dtype: matrices[members] for dtype, matrices in ours.items()})
        for dtype, (values, vectors) in self._leading.items():
            part._leading[dtype] = values[members], vectors[members]
        return part

    def parts(self, group: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return K of some samples, of shape (Q, m, m); the caller may write into it.

        Args:
            group: index of the matrix in the stack, of shape (Q,); zeros for one matrix.
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
        """Return whether factoring parts of K costs less than conjugate gradients in 1 + weight K.

        It never does if the matrix is not formed: nothing beats products then.

        Args:
            weight: largest weight of the problems.
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
        """Return v K, of shape (..., P, n), for v of that shape, in the dtype of v."""
        if self._square:
            return v @ _in(self._square, v.dtype)
        tall = _in(self._tall, v.dtype)
        return (v @ tall) @ tall.mT

    def precondition(self, v: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return an approximation of (1 + weight K)^-1 v, from the leading eigenvectors of K.

        Args:
            v: of shape (..., P, n).
            weight: of shape (..., P, 1), not negative.
        """
        values, vectors = self._eigenvectors(v.dtype)
        share = weight * values[..., None, :]
        return v - ((v @ vectors) * (share / (1 + share))) @ vectors.mT

    def _eigenvectors(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the r largest eigenvalues (..., r) and their eigenvectors (..., n, r).

        They are computed by subspace iteration.
        """
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
    """Return X X^T + 1 in float64, from products in the faster dtype of the features.

    With few dimensions K is singular, and float32 would make some of its eigenvalues negative.
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
