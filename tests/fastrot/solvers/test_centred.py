"""Centred features: products, coordinates and leading eigenvectors, from their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastrot.solvers import centred
from fastrot.solvers.centred import Centred
from fastrot.solvers.softmax import solve_path


def rows(n: int, dims: int) -> torch.Tensor:
    """Features whose directions differ much in variance, far from zero."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -3, dims)
    turn = torch.linalg.qr(torch.randn(dims, dims, generator=generator))[0]
    return (torch.randn(n, dims, generator=generator) * scale) @ turn + 3


@pytest.mark.parametrize("whole", [True, False], ids=["float64 kept", "row by row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_with_the_centred_matrix(monkeypatch, whole, dtype) -> None:
    if not whole:
        monkeypatch.setattr(centred, "_WHOLE", 0)
        monkeypatch.setattr(centred, "_ROWS", 16)
    features = rows(50, 30)
    x = Centred(features)
    exact = features.double() - features.double().mean(0)
    v, r = torch.randn(30, 4, dtype=dtype), torch.randn(50, 4, dtype=dtype)
    for found, expected in (
        (x.product(v), exact @ v.double()),
        (x.transposed(r), exact.T @ r.double()),
    ):
        assert found.dtype == dtype
        np.testing.assert_allclose(found.double(), expected, atol=2e-5)


def test_wide_features_are_kept_as_coordinates_of_their_span() -> None:
    features = rows(20, 60)
    x = Centred(features)
    assert x.dim == 20
    exact = features.double() - features.double().mean(0)
    v = torch.randn(20, 3, dtype=torch.float64)
    w = x.weights(v)
    np.testing.assert_allclose(x.product(v), exact @ w, atol=1e-6)
    np.testing.assert_allclose(w.norm(dim=0), v.norm(dim=0))
    np.testing.assert_allclose(x.coordinates(w), v, atol=1e-12)
    assert Centred(features, span=False).dim == 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_or_the_leading_eigenvectors_are_those_of_the_covariance(monkeypatch, dtype) -> None:
    features = rows(200, 40)
    values, vectors = np.linalg.eigh(np.cov(features.double().T, bias=True))
    everything = Centred(features).principal(dtype)
    assert everything.tail is None
    np.testing.assert_allclose(everything.values, values[::-1], atol=1e-6)
    monkeypatch.setattr(centred, "_FULL", 10)
    monkeypatch.setattr(centred, "_RANK", 8)
    monkeypatch.setattr(centred, "_OVERSAMPLING", 8)
    found = Centred(features).principal(dtype)
    assert found.vectors.shape == (40, 8)
    assert found.vectors.dtype == dtype
    np.testing.assert_allclose(found.values, values[:-9:-1], rtol=1e-3)
    assert found.tail == pytest.approx(values[:-8].mean(), rel=1e-3)
    overlap = np.abs(np.sum(found.vectors.double().numpy() * vectors[:, :-9:-1], axis=0))
    assert overlap[:4] == pytest.approx(1.0, abs=1e-2)


def test_an_optimum_does_not_depend_on_how_much_is_diagonalised(monkeypatch) -> None:
    features, labels = rows(200, 40), torch.arange(200) % 3
    (whole,) = solve_path(features, labels, [1e-4], tolerance=1e-8)
    monkeypatch.setattr(centred, "_FULL", 10)
    monkeypatch.setattr(centred, "_RANK", 4)
    monkeypatch.setattr(centred, "_OVERSAMPLING", 4)
    monkeypatch.setattr(centred, "_WHOLE", 0)
    (part,) = solve_path(features, labels, [1e-4], tolerance=1e-8)
    assert part.gap <= 1e-8
    assert part.objective == pytest.approx(whole.objective, rel=1e-8)
    assert part.products > whole.products
