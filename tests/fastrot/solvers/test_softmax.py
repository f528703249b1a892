"""Softmax regression: the optimum of torch, scikit-learn and cyanure, and gaps that hold."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fastrot.data.images.decode import decode_image
from fastrot.errors import UsageError
from fastrot.solvers.softmax import Solution, certificate, solve_path
from fastrot.solvers.softmax_libraries import solve_by_library

STRENGTHS = (1e-2, 1e-3, 1e-4)
LIBRARIES = ("torch", "sklearn", "cyanure")


@pytest.fixture(scope="module")
def photos(test_data: Callable[[str], Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of 250 photos in 5 classes, every eighth row and column, standardised."""
    rows, labels = [], []
    for label, folder in enumerate(sorted((test_data("imagenette-128") / "train").iterdir())[:5]):
        for path in sorted(folder.iterdir())[:50]:
            pixels = decode_image(path.read_bytes(), apply_exif=True)
            rows.append(pixels[:128:8, :128:8].reshape(-1).astype(np.float64))
            labels.append(label)
    features = np.stack(rows)
    features = (features - features.mean(0)) / features.std(0)
    return torch.from_numpy(features), torch.tensor(labels)


def solve(x: torch.Tensor, y: torch.Tensor, **options: object) -> list[Solution]:
    return list(solve_path(x, y, STRENGTHS, **options))  # type: ignore[arg-type]


def objective(
    x: torch.Tensor, y: torch.Tensor, strength: float, w: torch.Tensor, b: torch.Tensor
) -> float:
    """P(W, b) from its definition."""
    loss = torch.nn.functional.cross_entropy(x.double() @ w + b, y)
    return float(loss + 0.5 * strength * w.square().sum())


@pytest.mark.parametrize("columns", [768, 200, 40], ids=["D > 2n", "D < n", "D << n"])
def test_the_objective_is_what_is_said_and_no_one_finds_a_lower_one(photos, columns) -> None:
    x, y = photos[0][:, :columns], photos[1]
    for found in solve(x, y, tolerance=1e-8):
        ours = objective(x, y, found.strength, found.weight, found.intercept)
        assert ours == pytest.approx(found.objective, rel=1e-6)
        assert -1e-12 <= found.gap <= 1e-8
        peer = LogisticRegression(C=1 / (found.strength * len(x)), tol=1e-7, max_iter=20_000)
        peer.fit(x.numpy(), y.numpy())
        theirs = objective(
            x, y, found.strength, torch.from_numpy(peer.coef_.T), torch.from_numpy(peer.intercept_)
        )
        assert ours == pytest.approx(theirs, rel=1e-6)
        np.testing.assert_allclose(found.weight, peer.coef_.T, atol=2e-3 * np.abs(peer.coef_).max())


@pytest.mark.parametrize("solver", LIBRARIES)
@pytest.mark.parametrize(
    ("rows", "columns"), [(200, 240), (250, 40), (100, 40)], ids=["D > n", "D < n", "two classes"]
)
def test_libraries_have_the_same_optimum(photos, solver, rows, columns) -> None:
    x, y = photos[0][:rows, :columns], photos[1][:rows]
    for found in solve_path(x, y, STRENGTHS[:1]):
        theirs = solve_by_library(solver, x, y, found.strength, classes=6)
        value = objective(x, y, found.strength, theirs.weight, theirs.intercept)
        assert theirs.objective == pytest.approx(value, rel=1e-6)
        assert abs(value / found.objective - 1) <= 1e-5
        dual = theirs.objective * (1 - theirs.gap)
        assert dual <= found.objective * (1 + 1e-9), "the dual exceeds the primal"
        assert theirs.logits(x).shape == (rows, 6)
        assert (theirs.logits(x).argmax(dim=1) == found.logits(x).argmax(dim=1)).all()


@pytest.mark.parametrize("solver", LIBRARIES)
def test_libraries_find_one_class_alone_always_right(photos, solver) -> None:
    x, y = photos[0][:50, :40], photos[1][:50] + 1
    found = solve_by_library(solver, x, y, 1e-3, classes=3)
    assert (found.objective, found.gap) == (0.0, 0.0)
    assert (found.logits(x).argmax(dim=1) == 1).all()


def test_the_certificate_of_anything_bounds_the_optimum(photos) -> None:
    x, y = photos[0][:, :40], photos[1]
    (best,) = solve_path(x, y, [1e-3], tolerance=1e-9)
    random = torch.Generator().manual_seed(0)
    for scale in (0.0, 1e-4, 1e-2, 1.0):
        w = best.weight + scale * torch.randn(best.weight.shape, generator=random)
        b = best.intercept + scale * torch.randn(best.intercept.shape, generator=random)
        value, gap = certificate(x, y, 1e-3, w, b)
        assert value == pytest.approx(objective(x, y, 1e-3, w, b), rel=1e-6)
        assert value * (1 - gap) <= best.objective * (1 + 1e-9)


def test_large_means_and_half_precision_change_nothing(photos) -> None:
    x, y = photos[0][:, :40].half(), photos[1]
    for plain, moved in zip(solve(x.float(), y), solve((x + 16).float(), y), strict=True):
        # Adding 16 rounds halves to 1/64: the features are a little others.
        assert moved.objective == pytest.approx(plain.objective, rel=2e-2)
    for plain, half in zip(solve(x.float(), y), solve(x, y), strict=True):
        assert half.objective == pytest.approx(plain.objective, rel=2e-6)


def test_two_classes(photos) -> None:
    x, y = photos[0][:100, :40], photos[1][:100]
    for found in solve(x, y, tolerance=1e-8):
        # One weight w does for both: W = (-w, w) / 2, so that |W|^2 = |w|^2 / 2.
        peer = LogisticRegression(C=2 / (found.strength * len(x)), tol=1e-8, max_iter=20_000)
        peer.fit(x.numpy(), y.numpy())
        w, b = torch.from_numpy(peer.coef_[0]) / 2, float(peer.intercept_[0]) / 2
        theirs = objective(
            x, y, found.strength, torch.stack([-w, w], 1), torch.tensor([-b, b]).double()
        )
        assert found.objective == pytest.approx(theirs, rel=1e-6)


def test_a_class_without_samples_takes_no_part(photos) -> None:
    x, y = photos[0][:, :40], photos[1]
    without = y != 2
    relabelled = torch.where(y > 2, y - 1, y)[without]
    for gapped, dense in zip(
        solve(x[without], y[without], classes=7), solve(x[without], relabelled), strict=True
    ):
        assert gapped.objective == pytest.approx(dense.objective, rel=1e-9)
        logits = gapped.logits(x)
        assert logits.shape == (len(x), 7)
        assert torch.isneginf(logits[:, [2, 5, 6]]).all()
        assert not torch.isinf(logits[:, [0, 1, 3, 4]]).any()


def test_one_class_alone_is_always_right(photos) -> None:
    (found,) = solve_path(photos[0][:50], photos[1][:50], [1e-3])
    assert (found.objective, found.gap, found.newton_steps) == (0.0, 0.0, 0)


def test_features_of_zeros_leave_the_shares_of_the_classes() -> None:
    y = torch.tensor([0, 0, 0, 1])
    (found,) = solve_path(torch.zeros(4, 3), y, [1e-3])
    assert not found.weight.any()
    shares = found.intercept.softmax(dim=0)
    np.testing.assert_allclose(shares, [0.75, 0.25], atol=1e-9)


def test_separable_data_of_a_tiny_strength_has_a_finite_optimum(photos) -> None:
    x, y = photos
    for found in solve_path(x, y, [1e-4, 1e-8, 1e-10]):
        assert torch.isfinite(found.weight).all()
        assert found.gap <= 1e-6
        assert (found.logits(x).argmax(dim=1) == y).all()


def test_a_cold_start_ends_where_the_path_does(photos) -> None:
    x, y = photos[0][:, :200], photos[1]
    warm = solve(x, y)[-1]
    (cold,) = solve_path(x, y, [STRENGTHS[-1]])
    assert cold.objective == pytest.approx(warm.objective, rel=2e-6)


def test_a_large_step_is_cut() -> None:
    # From far outside, where all is saturated, Newton's own step is much too long or none.
    x = torch.tensor([[-1000.0], [-999.0], [999.0], [1000.0], [0.5]])
    y = torch.tensor([0, 0, 1, 1, 0])
    for found in solve_path(x, y, [1.0, 1e-3, 1e-5]):
        assert found.gap <= 1e-6


@pytest.mark.parametrize(
    ("shape", "labels", "options", "message"),
    [
        ((4, 2), torch.zeros(3, dtype=torch.int64), {}, r"\(4, 2\) and labels of shape \(3,\)"),
        ((4,), torch.zeros(4, dtype=torch.int64), {}, r"must be \(samples, D\)"),
        ((0, 2), torch.zeros(0, dtype=torch.int64), {}, "0 of them"),
        ((4, 0), torch.zeros(4, dtype=torch.int64), {}, r"features of shape \(4, 0\)"),
        ((4, 2), torch.zeros(4), {}, "must be integers"),
        ((4, 2), torch.tensor([0, 1, -1, 0]), {}, "labels from -1 to 1 must be from 0"),
        ((4, 2), torch.tensor([0, 1, 5, 0]), {"classes": 5}, "must be from 0 to 4"),
        ((4, 2), torch.tensor([0, 1, 1, 0]), {"tolerance": 0.0}, "must be positive"),
        ((4, 2), torch.tensor([0, 1, 1, 0]), {"strengths": [-1.0]}, "must be positive"),
    ],
)
def test_bad_arguments_are_named(shape, labels, options, message) -> None:
    arguments = {"strengths": [1e-3], **options}
    with pytest.raises(ValueError, match=message):
        list(solve_path(torch.ones(shape), labels, **arguments))


def test_features_that_are_not_finite_are_refused() -> None:
    x = torch.ones(4, 2)
    x[1, 1] = torch.inf
    with pytest.raises(ValueError, match="features must be finite"):
        list(solve_path(x, torch.tensor([0, 1, 1, 0]), [1e-3]))


def test_a_weight_that_does_not_fit_is_named(photos) -> None:
    with pytest.raises(ValueError, match=r"weight of shape \(3, 5\)"):
        certificate(photos[0], photos[1], 1e-3, torch.zeros(3, 5), torch.zeros(5))


def test_without_cyanure_the_error_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cyanure.estimators", None)
    with pytest.raises(UsageError, match="pip install cyanure"):
        solve_by_library("cyanure", torch.ones(2, 1), torch.tensor([0, 1]), 1e-3)
