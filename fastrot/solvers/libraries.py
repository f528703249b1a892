"""Packages that can solve a protocol's problems instead of fastrot, and the error without them."""

from __future__ import annotations

import importlib
from typing import Any

from fastrot.errors import UsageError

_MODULES = {"sklearn": "sklearn", "cyanure": "cyanure.estimators"}
_PACKAGES = {"sklearn": "scikit-learn"}


def require_library(solver: str, setting: str) -> Any:
    """Import and return the module that a solver needs; None for fastrot and torch.

    Args:
        solver: value of the setting.
        setting: ``svm.solver`` or ``linear.solver``, for the message.

    Raises:
        UsageError: the package is not installed, or cannot be imported.
    """
    if solver not in _MODULES:
        return None
    try:
        return importlib.import_module(_MODULES[solver])
    except ImportError as error:
        raise UsageError(
            f"{setting}={solver}: cannot be imported ({error}); pip install "
            f"{_PACKAGES.get(solver, solver)}, or set {setting}=fastrot"
        ) from None
