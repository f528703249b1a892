"""Ranks to which something happens at a step; the server runs them in place of fastrot."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastrot.training.data
import fastrot.training.loop
import fastrot.training.trainer
from fastrot.cli.app import main
from fastrot.data.dataset import BadSampleError
from fastrot.errors import UsageError
from fastrot.training.step import TrainStep
from fastrot.training.validate import Between

RANK = "FASTROT_TEST_RANK"  # where it happens
STEP = 3  # before which it happens
BEGUN = "FASTROT_TEST_BEGUN"  # a file that appears when a long validation begins


def _run(words: tuple[str, ...]) -> None:
    sys.argv = ["fastrot", *words]
    main(list(words))


def _mine() -> bool:
    return os.environ["RANK"] == os.environ.get(RANK, "1")


def _before_step(do: Callable[[TrainStep, Any], Any]) -> None:
    """Do something to the drawn batches of one step, on one rank."""
    if not _mine():
        return
    call, count = TrainStep.__call__, [0]

    def patched(self: TrainStep, batches: Any) -> None:
        count[0] += 1
        if count[0] == STEP:
            batches = do(self, batches) or batches
        call(self, batches)

    TrainStep.__call__ = patched  # type: ignore[method-assign]


def not_finite(value: str, *words: str) -> None:
    """The loss of one rank becomes NaN or infinite, by its table of pixel values."""

    def spoil(step: TrainStep, batches: Any) -> None:
        step._task._table.fill_(float(value))  # type: ignore[attr-defined]

    _before_step(spoil)
    _run(words)


def out_of_memory(*words: str) -> None:
    """A pass of one rank does not fit."""

    def fail(step: TrainStep, batches: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    _before_step(fail)
    _run(words)


def bad_sample(*words: str) -> None:
    """One rank meets an image that cannot be read."""

    def fail(step: TrainStep, batches: Any) -> None:
        raise BadSampleError(7, "photo-7.jpg", "not a JPEG")

    _before_step(fail)
    _run(words)


def stuck(*words: str) -> None:
    """One rank waits for something that does not come: not for another rank."""
    _before_step(lambda step, batches: time.sleep(3600))
    _run(words)


def disk_full(*words: str) -> None:
    """The main rank cannot write checkpoints any more."""
    save, count = fastrot.training.loop.save_checkpoint, [0]

    def fail(*arguments: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] > 1:
            from fastrot.errors import StorageError

            raise StorageError(f"{os.strerror(errno.ENOSPC)}: 0 MB free, 2 MB needed")
        return save(*arguments, **options)

    fastrot.training.loop.save_checkpoint = fail  # type: ignore[assignment]
    _run(words)


def no_data(*words: str) -> None:
    """The dataset of the main rank is not what it should be."""
    open_dataset = fastrot.training.data.open_dataset

    def fail(*arguments: Any, **options: Any) -> Any:
        if _mine():
            raise UsageError("train.beton: no such file")
        return open_dataset(*arguments, **options)

    fastrot.training.data.open_dataset = fail  # type: ignore[assignment]
    _run(words)


def in_validation(*words: str) -> None:
    """The validation of one rank fails."""
    validate = fastrot.training.trainer.validate

    def fail(*arguments: Any, **options: Any) -> Any:
        if _mine():
            raise BadSampleError(3, "photo-3.jpg", "not a JPEG")
        return validate(*arguments, **options)

    fastrot.training.trainer.validate = fail  # type: ignore[assignment]
    _run(words)


def long_validation(*words: str) -> None:
    """Each batch of a validation takes its time; a file says that the first one has begun."""
    validate = fastrot.training.trainer.validate

    def slow(*arguments: Any, between: Between, **options: Any) -> Any:
        def slowly(done: int, of: int) -> None:
            Path(os.environ[BEGUN]).touch()
            time.sleep(0.25)
            between(done, of)

        return validate(*arguments, between=slowly, **options)

    fastrot.training.trainer.validate = slow  # type: ignore[assignment]
    _run(words)


def at_the_end(*words: str) -> None:
    """The main rank takes its time after the last step, while the other one has left."""
    from fastrot.runs.reporter import TerminalReporter

    finished = TerminalReporter.finished

    def slow(self: TerminalReporter, result: Any) -> None:
        if os.environ["RANK"] == "0":
            time.sleep(12)
        finished(self, result)

    TerminalReporter.finished = slow  # type: ignore[method-assign]
    _run(words)


def impatient(*words: str) -> None:
    """Ranks that wait two seconds for each other at the start."""
    import fastrot.distributed.world

    fastrot.distributed.world.JOIN_SECONDS = 2.0
    _run(words)
