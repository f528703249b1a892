"""The problem of ``softmax`` solved by cyanure (Mairal, 2019), an optional package.

Shapes: n samples, D dimensions, C classes, K of them present.
"""

from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

import torch

from fastrot.errors import UsageError
from fastrot.solvers.openmp import openmp_kept

_PASSES = 20_000


def solve_with_cyanure(
    features: torch.Tensor,
    labels: torch.Tensor,
    strength: float,
    *,
    classes: int | None = None,
    tolerance: float = 1e-6,
    passes: int = _PASSES,
    threads: int = -1,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and intercepts of ``softmax.solve_path``'s problem.

    cyanure takes two classes for one weight w that separates them. With W = (-w, w) / 2 that is
    the same problem of half the strength. It has no classes without samples; they get none here.

    Args:
        features: of shape (n, D), any float dtype; cyanure computes on the CPU.
        labels: of shape (n,), integers from 0.
        strength: s.
        classes: C; None: the largest label and 1.
        tolerance: cyanure's ``tol``, its relative duality gap.
        passes: over the data, at most.
        threads: -1: all cores.
        dtype: float64, or float32, in which small gaps are not reached.

    Returns:
        W of shape (D, C) and b of shape (C,), float64; 0 and minus infinity for a class without
        samples.

    Raises:
        UsageError: cyanure is not installed.
    """
    present, targets = torch.unique(labels.cpu(), return_inverse=True)
    classes = int(present.max()) + 1 if classes is None else classes
    weight = torch.zeros(features.shape[1], classes, dtype=torch.float64)
    intercept = torch.full((classes,), -math.inf, dtype=torch.float64)
    intercept[present] = 0.0
    if len(present) == 1:
        _estimators()
        return weight, intercept
    binary = len(present) == 2
    model = _estimators().Classifier(
        loss="logistic" if binary else "multiclass-logistic",
        penalty="l2",
        lambda_1=strength / 2 if binary else strength,
        fit_intercept=True,
        tol=tolerance,
        max_iter=passes,
        n_threads=threads,
        verbose=False,
    )
    with warnings.catch_warnings(), openmp_kept():
        warnings.simplefilter("ignore")  # that it did not converge shows in the certificate
        model.fit(features.cpu().to(dtype).numpy(), targets.numpy())
    w = torch.from_numpy(model.coef_.copy()).double().reshape(features.shape[1], -1)
    b = torch.from_numpy(model.intercept_.copy()).double().reshape(-1)
    if binary:
        w, b = torch.cat([-w, w], dim=1) / 2, torch.cat([-b, b]) / 2
    weight[:, present], intercept[present] = w, b
    return weight, intercept


def _estimators() -> Any:
    try:
        return importlib.import_module("cyanure.estimators")
    except ImportError as error:
        raise UsageError(
            f"cyanure cannot be imported ({error}); pip install cyanure, or take "
            "linear.solver=fastrot"
        ) from None
