"""Other libraries' SVMs: the optimum of ours, a gap that holds, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastrot.errors import UsageError
from fastrot.solvers.gram import Gram
from fastrot.solvers.gram_svm import solve_path
from fastrot.solvers.svm_libraries import certificate, check_solver, fit_all, fit_linearsvc
from tests.fastrot.evaluation.photo_caches import thumbnails

COSTS = (100.0, 1.0, 0.01)


@pytest.fixture(scope="module")
def photos(test_data: Callable[[str], Path]) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Unit rows of 80 photos of 4 classes, and the signs of two problems, one on a part."""
    rows = thumbnails(test_data("imagenette-128") / "train", 20, 4)[:, ::8].astype(np.float64)
    signs = np.where(np.arange(4)[:, None] == np.repeat(np.arange(4), 20), 1, -1)[:2]
    signs[1, ::3] = 0
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), signs.astype(np.int8)


@pytest.mark.parametrize("solver", ["sklearn", "cyanure"])
def test_they_find_our_optimum_at_every_cost(photos, solver) -> None:
    x, signs = photos
    gram = Gram(torch.from_numpy(x))
    ours = {s.cost: s for s in solve_path(gram, torch.from_numpy(signs), COSTS, positive_weight=2)}
    fits = list(fit_all(solver, x, signs, COSTS, positive_weight=2.0, tolerance=1e-6, cores=2))
    assert [(f.cost, f.problem) for f in fits] == [(c, p) for c in COSTS for p in range(2)]
    for fit in fits:
        assert 0 <= fit.gap <= 1e-5
        theirs = x @ fit.w[:-1] + fit.w[-1]
        expected = ours[fit.cost].decision[fit.problem].numpy()
        assert np.abs(theirs - expected).max() <= 5e-3 * np.abs(expected).max()


def test_the_gap_of_a_fit_that_was_stopped_says_so(photos) -> None:
    x, y = photos[0], photos[1][0]
    (best,) = fit_all("sklearn", x, y[None], [100.0], positive_weight=2.0, tolerance=1e-8, cores=1)
    least, _ = certificate(best.w, x, y, 100.0, 2.0)
    w = fit_linearsvc(x, y, 100.0, 2.0, dual=True, tolerance=1e-4, steps=10)
    objective, gap = certificate(w, x, y, 100.0, 2.0)
    assert gap >= (objective - least) / objective > 1e-3
    assert certificate(np.zeros(x.shape[1] + 1), x, y, 1.0, 2.0)[0] == 2 * 20 + 60


def test_weights_that_cyanure_cannot_have_are_refused() -> None:
    with pytest.raises(UsageError, match=r"positive_weight=1\.5.*whole number.*sklearn"):
        check_solver("cyanure", 1.5)
    check_solver("sklearn", 1.5)


def test_a_package_that_is_not_installed_is_one_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cyanure.estimators", None)
    with pytest.raises(UsageError, match=r"pip install cyanure, or set svm\.solver=fastrot"):
        check_solver("cyanure", 2.0)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match=r"pip install scikit-learn, or set svm\.solver=fastrot"):
        check_solver("sklearn", 2.0)
