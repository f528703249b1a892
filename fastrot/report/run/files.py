"""Reading of a run folder that is not trusted: a damaged part becomes a note, not a failure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastrot.config import Config, load_config
from fastrot.errors import FastrotError, UsageError
from fastrot.system.jsonl import read_json_lines, read_object

_PARTS = ("status.json", "config.yaml", "checkpoints")


@dataclass
class RunFiles:
    """The files of a run, as far as they can be read.

    Attributes:
        path: the run folder.
        config: the resolved settings, or None.
        status: content of ``status.json``; empty if it cannot be read.
        environment: content of ``environment.json``; empty if it cannot be read.
        training: training records of ``metrics.jsonl``, in order.
        validation: validation records of ``metrics.jsonl``, in order.
        notes: what could not be read and why, one line each.
    """

    path: Path
    config: Config | None = None
    status: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    training: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_live(self) -> bool:
        """Return whether the run had not ended when its status was written."""
        return self.status.get("state") == "running"

    def locate(self, data: str) -> Path:
        """Return the path of a dataset, resolved from where the run was started if it is there."""
        path = Path(data)
        folder = self.environment.get("folder")
        if not path.is_absolute() and isinstance(folder, str) and (Path(folder) / path).exists():
            return Path(folder) / path
        return path


def read_run(path: Path) -> RunFiles:
    """Read a run folder.

    Raises:
        UsageError: the path is not a run folder.
    """
    if not path.is_dir() or not any((path / name).exists() for name in _PARTS):
        what = "not a run folder" if path.exists() else "no such folder"
        raise UsageError(
            f"{path}: {what} (a run folder has {', '.join(_PARTS)}); name one made by fastrot train"
        )
    run = RunFiles(path)
    try:
        run.config = load_config(str(path / "config.yaml"), recorded=True)
    except FastrotError as error:
        run.notes.append(f"settings: {error}")
    except (OSError, ValueError) as error:
        run.notes.append(f"settings: config.yaml cannot be read ({error})")
    for name in ("status", "environment"):
        tree = read_object(path / f"{name}.json")
        if isinstance(tree, str):
            run.notes.append(f"{name}: {tree}")
        else:
            setattr(run, name, tree)
    _read_metrics(run)
    return run


def _read_metrics(run: RunFiles) -> None:
    path = run.path / "metrics.jsonl"
    kinds = {"train": run.training, "validation": run.validation}
    whole: list[bool] = []  # for each skipped line: whether it ends with a newline
    try:
        if not path.exists():
            run.notes.append("metrics: there is no metrics.jsonl")
        for record in read_json_lines(path, left_out=lambda line: whole.append(line[-1:] == b"\n")):
            kind = record.get("kind")
            if isinstance(kind, str) and kind in kinds:
                kinds[kind].append(record)
    except OSError as error:
        run.notes.append(f"metrics: metrics.jsonl cannot be read ({error.strerror or error})")
    damaged = sum(whole)
    if damaged:
        lines = "1 damaged line" if damaged == 1 else f"{damaged:,} damaged lines"
        run.notes.append(f"metrics: {lines} of metrics.jsonl skipped")
    if damaged < len(whole):
        run.notes.append("metrics: the last line of metrics.jsonl is incomplete and was skipped")
