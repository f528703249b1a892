"""How training fails: torch's exceptions become errors with exit codes, recorded on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastrot.errors import DeviceFailedError, FastrotError, OutOfMemoryError
from fastrot.runs.folder import RunFolder, read_status

log = logging.getLogger(__name__)


@contextmanager
def translate_oom() -> Iterator[None]:
    """Raise an OutOfMemoryError, which names a fix, if the block runs out of memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # torch raises a plain RuntimeError when a CPU is out of memory, as for other failures.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and (
            "can't allocate memory" not in str(error)
        ):
            raise
        raise OutOfMemoryError(
            f"out of memory: {(str(error) or type(error).__name__).splitlines()[0]}; make a pass "
            "smaller with --set train.micro_batch=N (batch norm then sees N images at a time) or "
            "lower data.resolution; checkpoints are intact"
        ) from error


@contextmanager
def translate_device_failure() -> Iterator[None]:
    """Raise a DeviceFailedError, which a restart may fix, if a GPU fails in the block."""
    try:
        yield
    except RuntimeError as error:
        line = str(error).strip().partition("\n")[0]
        if not line.startswith(("CUDA error", "cuDNN error", "CUBLAS error")):
            raise
        raise DeviceFailedError(
            f"the GPU of this rank failed ({line}); look for Xid in the kernel's log (dmesg); "
            "checkpoints are intact: add --resume to the same command to continue"
        ) from error


@contextmanager
def recorded(folder: RunFolder) -> Iterator[None]:
    """Record the outcome of the block in ``status.json``, whatever it is."""
    try:
        yield
    except FastrotError as error:
        record_failure(folder, error)
        raise
    except BaseException as error:
        record_failure(folder, FastrotError(f"{type(error).__name__}: {error}"))
        raise
    else:
        folder.write_status(
            "done", **_position(folder), exit_code=0, message="training is complete"
        )


def record_failure(folder: RunFolder, error: FastrotError) -> None:
    """Write to ``status.json`` that the run failed, or was preempted, and why."""
    try:
        folder.write_status(
            "preempted" if error.exit_code == 75 else "failed",
            **_position(folder),
            exit_code=error.exit_code,
            message=str(error),
        )
    except FastrotError as second:  # the first failure is the one to report
        log.warning("status not written: %s", second)


def _position(folder: RunFolder) -> dict[str, Any]:
    status = read_status(folder.path)
    return {"step": int(status.get("step", 0)), "epoch": float(status.get("epoch", 0.0))}
