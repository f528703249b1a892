"""The SVMs of a protocol, fitted by another library (``svm.solver``), with lines of progress."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.errors import NonFiniteError
from fastrot.evaluation.protocol import SvmConfig
from fastrot.solvers.svm_libraries import Fit, fit_all
from fastrot.system.console import Say
from fastrot.system.machine import usable_cores

_SAY_SECONDS = 10.0
_FAR = 100  # tolerances that a duality gap may exceed before the user is told


def library_fits(
    features: torch.Tensor,
    signs: NDArray[np.int8],
    costs: Sequence[float],
    config: SvmConfig,
    title: str,
    say: Say,
) -> Iterator[Fit]:
    """Yield the fit of every problem for every cost, in the order of ``fit_all``.

    Args:
        features: of shape (n, D).
        signs: of shape (P, n): 1, -1, or 0 for an image that is not in the problem.
        costs: values of C.
        config: solver, weight of positives, tolerance.
        title: name of the work, for the lines of progress.
        say: called with a line every ten seconds, and about fits that stopped too early.

    Raises:
        NonFiniteError: a solution is not finite.
    """
    total, began = len(signs) * len(costs), time.monotonic()
    said, far = began, 0
    fits = fit_all(
        config.solver,
        features.cpu().double().numpy(),
        signs,
        costs,
        positive_weight=config.positive_weight,
        tolerance=config.tolerance,
        cores=usable_cores(),
    )
    for done, fit in enumerate(fits, 1):
        if math.isnan(fit.gap):
            raise NonFiniteError(
                f"{title}: {config.solver} found no finite solution at cost {fit.cost:g}; use "
                "svm.solver=fastrot"
            )
        yield fit
        far += fit.gap > _FAR * config.tolerance
        if (now := time.monotonic()) - said >= _SAY_SECONDS:
            said, left = now, (now - began) / done * (total - done)
            say(f"{title}: {done:,} of {total:,} SVMs by {config.solver}, {left:.0f} s left")
    if far:
        say(
            f"{title}: {config.solver} stopped {far:,} of {total:,} SVMs at a duality gap of more "
            f"than {_FAR} x svm.tolerance: their AP may differ; use svm.solver=fastrot"
        )
