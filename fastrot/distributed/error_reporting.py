"""Which rank prints a failure: one line is enough for all of them."""

from __future__ import annotations

import hashlib
import os
import re
from typing import TypeVar

from fastrot.distributed.rank_environment import STORE
from fastrot.errors import FastrotError

Failure = TypeVar("Failure", bound=FastrotError)


def raised_by_all(error: Failure, rank: int) -> Failure:
    """Mark a failure that all ranks raise together: the main rank prints it.

    Args:
        error: it is returned.
        rank: this one.
    """
    error.reported_elsewhere = rank != 0
    return error


def raised_by(error: Failure, failed: int, rank: int) -> Failure:
    """Mark a failure that another rank has had: the main rank prints it.

    What the main rank itself has had is printed by all that see it, if it was killed.

    Args:
        error: it is returned.
        failed: the rank that failed.
        rank: this one.
    """
    error.reported_elsewhere = rank != 0 and failed != 0
    return error


def line_to_print(error: FastrotError) -> str:
    """Return the line that this process prints of a failure; empty where another rank does.

    Asked once for each failure: whoever asks first, of the ranks of one launcher, prints it.
    """
    if error.reported_elsewhere:
        return ""
    line = str(error) if error.rank is None else f"rank {error.rank}: {error}"
    return "" if _printed_by_another_rank(line) else f"fastrot: {line}"


def _printed_by_another_rank(line: str) -> bool:
    """Leave a mark for a line beside the file by which the ranks of a machine find each other.

    They read the same data and settings, and so fail in the same words.
    """
    store = os.environ.get(STORE)
    if not store:
        return False
    words = re.sub(r"^rank \d+: ", "", line)
    mark = f"{store}.said-{hashlib.sha256(words.encode()).hexdigest()[:16]}"
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return True
    except OSError:  # the launcher has gone
        pass
    return False
