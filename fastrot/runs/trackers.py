"""Copies of the metrics for viewers: TensorBoard, Weights & Biases, MLflow.

``metrics.jsonl`` is the record; a tracker is a convenience. A tracker that is requested but not
installed is an error before the first step; one that fails later is dropped with a warning.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fastrot.config import SinksConfig
from fastrot.errors import UsageError

Settings = Mapping[str, Mapping[str, Any]]
_logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A destination for scalars."""

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log finite metrics of one step."""
        ...

    def close(self, *, ok: bool) -> None:
        """Flush and close; ``ok`` says that the run neither failed nor was preempted."""
        ...


class Trackers:
    """All trackers of a run behind one call; a context manager.

    Args:
        config: settings that name the trackers.
        folder: the run folder; TensorBoard writes to ``folder/tensorboard``.
        run_id: id of the run, the same after a resume, so that the curves continue.
        settings: the resolved configuration by section and key, shown beside the curves.
        resume_step: step of the checkpoint that the run resumes from; None: a new run.
        warn: called with one line for each tracker that is dropped.

    Raises:
        UsageError: the package of a requested tracker is not installed.
    """

    def __init__(
        self,
        config: SinksConfig,
        folder: Path,
        run_id: str,
        *,
        settings: Settings | None = None,
        resume_step: int | None = None,
        warn: Callable[[str], None] = _logger.warning,
    ) -> None:
        self._warn = warn
        self._trackers: dict[str, Tracker] = {}
        settings = settings or {}
        if config.wandb_project is not None:
            _require("wandb", "sinks.wandb_project", config.wandb_project)
        if config.mlflow_experiment is not None:
            _require("mlflow", "sinks.mlflow_experiment", config.mlflow_experiment)
        if config.tensorboard:
            if find_spec("tensorboard") is None:
                warn("TensorBoard is not installed, so no event files: pip install tensorboard")
            else:
                self._open("TensorBoard", lambda: _TensorBoard(folder, resume_step))
        if (project := config.wandb_project) is not None:
            self._open("Weights & Biases", lambda: _Wandb(project, folder, run_id, settings))
        if (experiment := config.mlflow_experiment) is not None:
            self._open("MLflow", lambda: _Mlflow(experiment, run_id, settings))

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the finite metrics of one step to all trackers."""
        finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
        for name, tracker in list(self._trackers.items()):
            self._guard(name, partial(tracker.scalars, step, finite))

    def close(self, *, ok: bool = True) -> None:
        """Flush and close all trackers; safe to call twice."""
        for name, tracker in list(self._trackers.items()):
            self._guard(name, partial(tracker.close, ok=ok))
        self._trackers.clear()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self.close(ok=kind is None)

    def _open(self, name: str, make: Callable[[], Tracker]) -> None:
        def add() -> None:
            self._trackers[name] = make()

        self._guard(name, add)

    def _guard(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        # Trackers raise anything (network, disk, login, their own types), and none of it is a
        # reason to lose a run.
        except Exception as error:
            self._trackers.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            self._warn(f"{name} failed ({reason}) and is dropped; metrics.jsonl is still written")


class _TensorBoard:
    def __init__(self, folder: Path, resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Steps after the checkpoint are repeated; TensorBoard hides what they had logged.
        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def close(self, *, ok: bool) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, project: str, folder: Path, run_id: str, settings: Settings) -> None:
        import wandb

        self._run = wandb.init(
            project=project, id=run_id, resume="allow", dir=str(folder), config=dict(settings)
        )
        # W&B's own step only counts up, and would drop the steps that a resumed run repeats.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({**metrics, "step": step})

    def close(self, *, ok: bool) -> None:
        self._run.finish(exit_code=0 if ok else 1)


class _Mlflow:
    def __init__(self, experiment: str, run_id: str, settings: Settings) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else self._client.create_experiment(experiment)
        runs = self._client.search_runs([where], f"tags.fastrot_run = '{run_id}'", max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            tags = {"fastrot_run": run_id}
            self._run = self._client.create_run(where, tags=tags).info.run_id
            for section, values in settings.items():
                for key, value in values.items():
                    self._client.log_param(self._run, f"{section}.{key}", value)

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(key, value, now, step) for key, value in metrics.items()]
        # Asynchronous: a server that does not answer must not delay the training step.
        self._client.log_batch(self._run, metrics=rows, synchronous=False)

    def close(self, *, ok: bool) -> None:
        from mlflow import flush_async_logging

        flush_async_logging()
        self._client.set_terminated(self._run, "FINISHED" if ok else "FAILED")


def _require(package: str, key: str, value: str) -> None:
    if find_spec(package) is None:
        raise UsageError(
            f"{key}={value}: needs the package {package}, which is not installed: "
            f"pip install {package}, or remove the setting"
        )
