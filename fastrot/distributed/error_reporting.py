"""Choice of the rank that prints a failure, so that one line is printed for all."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TypeVar

from fastrot.distributed.rank_environment import STORE
from fastrot.errors import FastrotError

_MARK = ".said-"

Failure = TypeVar("Failure", bound=FastrotError)


def raised_by_all(error: Failure, rank: int) -> Failure:
    """Mark a failure that all ranks raise together: the main rank prints it.

    Args:
        error: the failure; it is returned.
        rank: this process.
    """
    error.reported_elsewhere = rank != 0
    return error


def raised_by(error: Failure, failed: int, rank: int) -> Failure:
    """Mark a failure of another rank: the main rank prints it.

    If the main rank itself failed, every rank that sees it prints it: it may have been killed.

    Args:
        error: the failure; it is returned.
        failed: the rank that failed.
        rank: this process.
    """
    error.reported_elsewhere = rank != 0 and failed != 0
    return error


def line_to_print(error: FastrotError) -> str:
    """Return the line that this process prints for a failure; empty if another rank prints it.

    Call it once per failure: the first rank of a launcher that calls it prints the line.
    """
    if error.reported_elsewhere:
        return ""
    line = str(error) if error.rank is None else f"rank {error.rank}: {error}"
    return "" if _printed_by_another_rank(line) else f"fastrot: {line}"


def said_beside(store: Path) -> list[Path]:
    """Return the marks of the lines that ranks have printed, which stand beside the rendezvous."""
    return list(store.parent.glob(f"{store.name}{_MARK}*"))


def _printed_by_another_rank(line: str) -> bool:
    """Mark a line as printed beside the rendezvous file; return whether it was marked already.

    The ranks read the same data and settings, and so they fail with the same words.
    """
    store = os.environ.get(STORE)
    if not store:
        return False
    words = re.sub(r"^rank \d+: ", "", line)
    mark = f"{store}{_MARK}{hashlib.sha256(words.encode()).hexdigest()[:16]}"
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return True
    except OSError:  # the launcher has gone
        pass
    return False
