"""The ways fastrot can fail: one exception type for each, with its exit code.

A message names the value, the rule and the fix on one line; the command line prints it as it
is and exits with ``exit_code``. Any other exception is a bug in fastrot.
"""

from __future__ import annotations


class FastrotError(Exception):
    """A failure that the user can understand and act on."""

    exit_code = 70
    reported_elsewhere = False
    """Whether another rank prints it: one line is enough for all of them."""
    rank: int | None = None
    """The rank where the failure began, if there are several."""


class UsageError(FastrotError):
    """The command or its arguments are wrong (exit code 64)."""

    exit_code = 64


class BadDataError(FastrotError):
    """A data file or a sample is damaged or does not fit its task (exit code 65)."""

    exit_code = 65


class TooFewImagesError(BadDataError):
    """A protocol needs more images of a class than the data has (exit code 65)."""


class RankLostError(FastrotError):
    """Another rank died, or did not answer within its deadline (exit code 69)."""

    exit_code = 69
    explained = False
    """Whether the message says which rank, and why."""


class DeviceFailedError(FastrotError):
    """The GPU of a rank failed; a restart or another GPU may help (exit code 69)."""

    exit_code = 69


class NonFiniteError(FastrotError):
    """A loss, a gradient, a feature or a solution is NaN or infinite (exit code 70)."""

    exit_code = 70


class OutOfMemoryError(FastrotError):
    """The device or the host has too little memory for this batch (exit code 71)."""

    exit_code = 71


class StorageError(FastrotError):
    """Reading or writing failed: disk full, no permission, I/O error (exit code 74)."""

    exit_code = 74


class PreemptedError(FastrotError):
    """A signal asked the run to stop; its checkpoint is written (exit code 75)."""

    exit_code = 75


class MismatchError(FastrotError):
    """Two things that must agree do not: configuration, version, lock holder (exit code 78)."""

    exit_code = 78


SLOWER = 79
"""Exit code of a comparison that found a regression (``fastrot report --baseline``).

The program itself did not fail: everything was read, written and shown.
"""
