"""Centred features: products with them, and the leading part of their covariance.

Centring loses nothing if the intercept is not penalised, and decouples it from the weights.

Shapes: n samples, D dimensions, d of them kept, K columns of a product, r leading eigenvectors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

_WHOLE = 2**31  # bytes up to which a float64 copy is kept
_ROWS = 2048  # rows converted to float64 at a time without such a copy
_FULL = 1536  # dimensions up to which the whole covariance is diagonalised
_RANK = 256
_OVERSAMPLING = 32
_PASSES = 3
_WIDE = 2  # ratio of dimensions to samples above which features are written in their span


class Principal(NamedTuple):
    """The leading part of the covariance X^T X / n.

    Attributes:
        values: the largest eigenvalues, of shape (r,), float64, decreasing.
        vectors: their eigenvectors, of shape (d, r).
        tail: mean of the other eigenvalues; None: there are no others.
    """

    values: torch.Tensor
    vectors: torch.Tensor
    tail: float | None


class Centred:
    """Features minus their mean, kept in float32 (and also in float64 if that is small).

    If D is more than twice n, they are stored as n coordinates in an orthonormal basis of their
    span, which contains the optimum of any w with an L2 penalty.

    Args:
        features: of shape (n, D), any float dtype, on the device that is to compute.
        span: whether that basis may be used.

    Attributes:
        num_samples: n.
        dim: d.
        device: device of the features.
        mean: of shape (D,), float64.

    Raises:
        ValueError: the features are not a matrix with at least one row and column, or not finite.
    """

    def __init__(self, features: torch.Tensor, *, span: bool = True) -> None:
        if features.ndim != 2 or not features.numel():
            raise ValueError(f"features of shape {tuple(features.shape)} must be (samples, D)")
        self.num_samples, self.device = len(features), features.device
        self.mean = features.mean(dim=0, dtype=torch.float64)
        if not torch.isfinite(self.mean).all() or not torch.isfinite(features).all():
            raise ValueError("features must be finite")
        self._basis: torch.Tensor | None = None
        if span and features.shape[1] > _WIDE * self.num_samples:
            basis, coordinates = torch.linalg.qr((features.double() - self.mean).T)
            self._basis, self._x = basis, coordinates.T.float().contiguous()
        else:
            self._x = features.float() - self.mean.float()
        self.dim = self._x.shape[1]
        whole = 8 * self._x.numel() <= _WHOLE
        self._x64 = self._x.double() if whole else None
        self._principal: Principal | None = None
        self._vectors: dict[torch.dtype, torch.Tensor] = {}

    def product(self, v: torch.Tensor) -> torch.Tensor:
        """Return X v of shape (n, K) for v of shape (d, K), in the dtype of v."""
        x = self._x if v.dtype == torch.float32 else self._x64
        if x is not None:
            whole: torch.Tensor = x @ v
            return whole
        return torch.cat([rows.double() @ v for rows in self._x.split(_ROWS)])

    def transposed(self, r: torch.Tensor) -> torch.Tensor:
        """Return X^T r of shape (d, K) for r of shape (n, K), in the dtype of r."""
        x = self._x if r.dtype == torch.float32 else self._x64
        if x is not None:
            whole: torch.Tensor = (r.T @ x).T
            return whole
        total = r.new_zeros(r.shape[1], self.dim)
        for rows, part in zip(self._x.split(_ROWS), r.split(_ROWS), strict=True):
            total.addmm_(part.T, rows.double())
        return total.T

    def coordinates(self, w: torch.Tensor) -> torch.Tensor:
        """Return the coordinates, of shape (d, K), of weights of shape (D, K)."""
        return w if self._basis is None else self._basis.T @ w

    def weights(self, v: torch.Tensor) -> torch.Tensor:
        """Return the weights, of shape (D, K), of coordinates of shape (d, K), float64."""
        return v if self._basis is None else self._basis @ v

    def principal(self, dtype: torch.dtype) -> Principal:
        """Return the leading eigenvectors of the covariance in this dtype, computed once."""
        if self._principal is None:
            self._principal = self._whole() if self.dim <= _FULL else self._leading()
        values, vectors, tail = self._principal
        if dtype not in self._vectors:
            self._vectors[dtype] = vectors.to(dtype)
        return Principal(values, self._vectors[dtype], tail)

    def _whole(self) -> Principal:
        covariance = self._x.new_zeros(self.dim, self.dim, dtype=torch.float64)
        for rows in self._x.split(_ROWS):
            covariance += rows.T @ rows
        values, vectors = torch.linalg.eigh(covariance / self.num_samples)
        return Principal(values.flip(0).clamp(min=0), vectors.flip(1).contiguous(), None)

    def _leading(self) -> Principal:
        """Compute the leading eigenvectors by subspace iteration."""
        width = min(_RANK + _OVERSAMPLING, self.num_samples, self.dim)
        # Drawn on the host from a fixed seed: the same on every device and in every run.
        basis = torch.randn(self.dim, width, generator=torch.Generator().manual_seed(0)).to(
            self.device
        )
        for _ in range(_PASSES):
            basis = torch.linalg.qr(self.transposed(self._x @ basis))[0]
        product = self._x @ basis
        values, vectors = torch.linalg.eigh((product.T @ product).double() / self.num_samples)
        order = torch.arange(width - 1, max(-1, width - 1 - _RANK), -1, device=self.device)
        values = values[order].clamp(min=0)
        trace = float(self._x.square().sum(dtype=torch.float64)) / self.num_samples
        tail = max(0.0, trace - float(values.sum())) / (self.dim - len(values))
        return Principal(values, basis.double() @ vectors[:, order], tail)
