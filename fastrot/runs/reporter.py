"""How a run reports its progress: the interface that the loop expects, and the terminal's reporter.

The terminal's reporter also passes every metric to the trackers (TensorBoard and others).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from fastrot.config import Config
from fastrot.runs.folder import RunFolder
from fastrot.runs.live_panel import Progress
from fastrot.runs.trackers import Trackers
from fastrot.system.console import counted
from fastrot.system.files import write_atomic
from fastrot.system.machine import environment_record

_NOT_SHOWN = ("gradient_norm", "data_wait_most", "data_wait_rank")


class Reporter(Protocol):
    """Receives what the loop reports; ``step`` is the number of steps done in the whole run."""

    def update(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Receive the metrics of the last interval."""
        ...

    def validating(self, *, step: int, batch: int, batches: int) -> None:
        """Receive the progress of a validation: ``batch`` of ``batches`` are done."""
        ...

    def validated(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Receive the metrics of a validation."""
        ...

    def message(self, text: str) -> None:
        """Receive one line for the user."""
        ...


class RunReporter(Reporter, Protocol):
    """A reporter of a whole run, which first learns what it will report on."""

    def begin(
        self,
        *,
        run: RunFolder,
        config: Config,
        images: int,
        total_steps: int,
        steps_per_epoch: int,
        step: int,
    ) -> None:
        """Receive the facts about the run; called once, on the main rank, before the first step."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """The result of a finished run.

    Attributes:
        out: run folder.
        step: number of optimizer steps done.
        validation: metrics and confusion matrix of the last validation, or None.
    """

    out: Path
    step: int
    validation: dict[str, Any] | None


class TerminalReporter:
    """Reports a run on standard error and to its trackers; a context manager.

    Args:
        quiet: show nothing; for ranks other than the main one.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._stack = ExitStack()
        self._progress: Progress | None = None
        self._trackers: Trackers | None = None
        self._fits_torchvision = False
        self._tensorboard = False

    def begin(
        self,
        *,
        run: RunFolder,
        config: Config,
        images: int,
        total_steps: int,
        steps_per_epoch: int,
        step: int,
    ) -> None:
        """Open the trackers, record the environment and start the progress display."""
        record = json.dumps(environment_record(), indent=1, default=str)
        write_atomic(run.path / "environment.json", record.encode() + b"\n")
        self._trackers = self._stack.enter_context(
            Trackers(
                config.sinks,
                run.path,
                run.run_id,
                settings=config.model_dump(mode="json"),
                resume_step=step or None,
                warn=self.message,
            )
        )
        train, epochs = config.train, total_steps / steps_per_epoch
        self.message(
            f"{config.model.name} at {config.data.resolution} px on {train.device}, "
            f"{train.precision}, {counted(train.threads or 0, 'thread')}, {config.data.loader} "
            f"loader with {counted(config.data.workers or 0, 'worker')}; "
            f"batch {train.global_batch} images; "
            f"{counted(total_steps, 'step')} ({counted(epochs, 'epoch')} of {images:,} images)"
            + (f", from step {step}" if step else "")
        )
        self.message(f"run folder: {run.path}")
        self._tensorboard = config.sinks.tensorboard
        model = config.model
        self._fits_torchvision = (
            model.name != "rotnet_nin" and model.width == 64 and model.stem == "imagenet"
        )
        self._progress = self._stack.enter_context(
            Progress(total_steps=total_steps, first_step=step, console=self._console)
        )

    def update(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of the last interval and pass them to the trackers."""
        shown = {key: value for key, value in metrics.items() if key not in _NOT_SHOWN}
        if self._progress is not None:
            self._progress.update(step=step, metrics=shown)
        if self._trackers is not None:
            self._trackers.scalars(step, {f"train/{key}": value for key, value in metrics.items()})

    def validating(self, *, step: int, batch: int, batches: int) -> None:
        """Show the progress of a validation."""
        if self._progress is not None:
            self._progress.validating(step=step, batch=batch, batches=batches)

    def validated(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a validation and pass them to the trackers."""
        if self._progress is not None:
            self._progress.validated()
        text = f"validation after step {step} (epoch {metrics['epoch']:.2f}): rotation accuracy "
        text += f"{100 * metrics['val_accuracy']:.2f} %, loss {metrics['val_loss']:.4f}"
        if "val_knn" in metrics:
            text += f", quick kNN {100 * metrics['val_knn']:.2f} %"
        self.message(text + (" (on the training data)" if metrics.get("val_is_train") else ""))
        if self._trackers is not None:
            self._trackers.scalars(
                step, {key.replace("val_", "val/"): value for key, value in metrics.items()}
            )

    def message(self, text: str) -> None:
        """Print a line now, above the live panel if there is one."""
        if self._progress is not None:
            self._progress.message(text)
        else:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def finished(self, result: TrainResult) -> None:
        """Report what was learnt and where the weights are."""
        self._stack.close()
        if result.validation is not None:
            self._console.print(_confusion_table(result.validation["confusion"]))
            accuracy = f"rotation accuracy {100 * result.validation['val_accuracy']:.2f} %"
            on_train = bool(result.validation.get("val_is_train"))
            text = f"{accuracy} on the training data" if on_train else f"held-out {accuracy}"
            if "val_knn" in result.validation:
                text += f", quick kNN {100 * result.validation['val_knn']:.2f} %"
            self.message(f"{text} (chance: 25 % for rotations)")
        newest = result.out / "checkpoints" / f"step-{result.step:08d}"
        fits = " (torchvision loads them)" if self._fits_torchvision else ""
        self.message(f"backbone weights: {newest / 'backbone.safetensors'}{fits}")
        if self._tensorboard:
            self.message(f"curves: tensorboard --logdir {result.out / 'tensorboard'}")

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.__exit__(*exc)


def _confusion_table(confusion: Sequence[Sequence[int]]) -> Table:
    """Return a table of true (rows) and predicted turns (columns), in percent of each row."""
    table = Table(title="Held-out views: which turn the model sees", title_justify="left")
    table.add_column("true turn", justify="right")
    for turn in range(len(confusion)):
        table.add_column(f"sees {90 * turn}°", justify="right")
    for turn, row in enumerate(confusion):
        shares = (f"{100 * count / max(1, sum(row)):.1f} %" for count in row)
        table.add_row(f"{90 * turn}°", *shares)
    return table
