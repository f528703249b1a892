from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastrot.config import SinksConfig
from fastrot.errors import UsageError
from fastrot.runs import trackers
from fastrot.runs.trackers import Trackers


def events(folder: Path) -> list[tuple[str, int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return [
        (tag, event.step, event.value)
        for tag in accumulator.Tags()["scalars"]
        for event in accumulator.Scalars(tag)
    ]


def test_tensorboard_gets_the_scalars_and_a_resume_hides_repeated_steps(tmp_path: Path) -> None:
    with Trackers(SinksConfig(), tmp_path, "r") as opened:
        for step in (1, 2, 3, 4):
            opened.scalars(step, {"loss": float(step), "broken": float("nan")})
    with Trackers(SinksConfig(), tmp_path, "r", resume_step=2) as opened:
        opened.scalars(3, {"loss": 30.0})
    assert events(tmp_path) == [("loss", 1, 1.0), ("loss", 2, 2.0), ("loss", 3, 30.0)]


def test_none_is_opened_when_none_is_wanted(tmp_path: Path) -> None:
    with Trackers(SinksConfig(tensorboard=False), tmp_path, "r") as opened:
        opened.scalars(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "config"),
    [
        ("wandb", SinksConfig(wandb_project="p")),
        ("mlflow", SinksConfig(mlflow_experiment="e")),
    ],
)
def test_a_missing_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, config: SinksConfig
) -> None:
    monkeypatch.setattr(trackers, "find_spec", {}.get)
    with pytest.raises(UsageError, match=f"pip install {package}"):
        Trackers(config, tmp_path, "r")
    assert list(tmp_path.iterdir()) == []


def test_a_sink_that_fails_is_dropped_with_one_warning(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    warnings: list[str] = []
    with Trackers(SinksConfig(), tmp_path, "r", warn=warnings.append) as opened:
        opened.scalars(1, {"loss": 1.0})
        opened.scalars(2, {"loss": 1.0})
    assert len(warnings) == 1
    assert warnings[0].startswith("TensorBoard failed (")


def test_wandb_keeps_one_run_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = SinksConfig(tensorboard=False, wandb_project="p")
    warnings: list[str] = []
    for resume_step in (None, 1):
        with Trackers(
            config,
            tmp_path,
            "abc123",
            settings={"train": {"epochs": 1}},
            resume_step=resume_step,
            warn=warnings.append,
        ) as opened:
            opened.scalars((resume_step or 0) + 1, {"loss": 1.0})
    assert warnings == []
    assert len(list(tmp_path.rglob("run-abc123.wandb"))) >= 1


def test_mlflow_keeps_one_run_over_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    config = SinksConfig(tensorboard=False, mlflow_experiment="e")
    warnings: list[str] = []
    for resume_step in (None, 1):
        with Trackers(
            config,
            tmp_path,
            "abc123",
            settings={"train": {"epochs": 1}},
            resume_step=resume_step,
            warn=warnings.append,
        ) as opened:
            opened.scalars((resume_step or 0) + 1, {"loss": 1.0})
    assert warnings == []
    client = MlflowClient()
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in history] == [1, 2]


def test_importing_trackers_imports_no_tracker() -> None:
    code = (
        "import sys, fastrot.runs.trackers;"
        "print([m for m in ('torch', 'tensorboard', 'wandb', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
