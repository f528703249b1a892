"""How the run was made: its summary, settings, machine, and the commands that repeat it."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastrot.report.charts.curve import values
from fastrot.report.html.blocks import Commands, Section, Table, Tile
from fastrot.report.html.text import clean, number, percent, plain, short, whole_percent
from fastrot.report.run.files import RunFiles
from fastrot.report.run.results import Found


def tiles(run: RunFiles) -> list[Tile]:
    """Return the recorded numbers that summarise the run."""
    found = []
    step, epoch = number(run.status, "step"), number(run.status, "epoch")
    if run.training:
        step = max(step or 0, number(run.training[-1], "step") or 0)
        epoch = max(epoch or 0, number(run.training[-1], "epoch") or 0)
    if epoch is not None and step is not None:
        planned = "" if run.config is None else f" of {short(run.config.train.epochs)}"
        found.append(Tile(short(epoch, 3), f"epochs{planned}", f"{step:,.0f} steps"))
    accuracy = values(run.validation, "val_accuracy")
    if accuracy:
        note = f"best {percent(100 * max(accuracy))}; chance {whole_percent(25)}"
        on_train = bool(run.validation[-1].get("val_is_train"))
        what = (
            "rotation accuracy on the training data" if on_train else "held-out rotation accuracy"
        )
        found.append(Tile(percent(100 * accuracy[-1]), what, note))
    neighbours = values(run.validation, "val_knn")
    if neighbours:
        note = f"best {percent(100 * max(neighbours))}; a trend, not a benchmark"
        found.append(Tile(percent(100 * neighbours[-1]), "quick kNN accuracy", note))
    speed = values(run.training, "images_per_second")
    if speed:
        note = "median, before rotation"
        found.append(Tile(short(statistics.median(speed), 3), "source images per second", note))
    return found


def subtitle(run: RunFiles) -> str:
    """Describe network, data and state in one line."""
    parts = []
    if run.config is not None:
        model = run.config.model
        width = "" if model.name == "rotnet_nin" else f" of width {model.width}"
        parts.append(
            f"{model.name}{width} at {run.config.data.resolution} px, pretrained by predicting "
            f"rotations of {run.config.data.train or 'unnamed data'}"
        )
    state = run.status.get("state")
    if isinstance(state, str):
        when = run.status.get("time")
        at = f" (as of {clean(when, 40)})" if isinstance(when, str) else ""
        parts.append(f"{clean(state, 40)}{at}")
    return "; ".join(parts)


def settings_section(run: RunFiles) -> Section:
    """Return tables of every setting of the run."""
    section = Section("settings", "Settings")
    if run.config is None:
        section.missing.append("settings: config.yaml is missing or cannot be read")
        return section
    for name, values_ in run.config.model_dump(mode="json").items():
        rows = [[key, plain(value)] for key, value in values_.items()]
        section.blocks.append(Table(["setting", "value"], rows, name, numeric=False))
    return section


def environment_section(run: RunFiles) -> Section:
    """Return a table of the machine and versions of the run's last start."""
    section = Section("environment", "Environment")
    if not run.environment:
        section.missing.append("environment: environment.json is missing or cannot be read")
        return section
    rows = list(_flat(run.environment))
    section.blocks.append(Table(["", "recorded"], rows, "Machine and versions", numeric=False))
    return section


def commands_section(run: RunFiles, found: Sequence[Found]) -> Section:
    """Return the commands that repeat the run, its evaluations and this page."""
    section = Section(
        "commands",
        "Commands",
        "The command that last started the run, as it was typed; then those that repeat the run "
        "from its resolved settings, evaluate it and write this page.",
    )
    lines = []
    typed = _typed(run.environment)
    folder = run.environment.get("folder")
    if typed:
        lines += [f"cd {shlex.quote(clean(folder))}"] if isinstance(folder, str) else []
        lines.append(typed)
    else:
        section.missing.append("the command that started the run: it was not recorded")
    name = shlex.quote(clean(str(run.path)))
    again = shlex.quote(clean(f"{run.path}-again"))
    config = shlex.quote(clean(str(run.path / "config.yaml")))
    lines.append(f"fastrot train -c {config} --out {again}")
    for one in found:
        if command := _typed(one.result.record):
            lines.append(command)
    lines.append(f"fastrot report {name}")
    section.blocks.append(Commands(list(dict.fromkeys(lines))))
    commit = run.environment.get("commit")
    if isinstance(commit, str):
        section.lead += f" Commit of fastrot: {clean(commit, 60)}."
    return section


def _typed(record: Mapping[str, Any]) -> str:
    """Return the command line of an environment record; empty if there is none."""
    words = record.get("command")
    if not isinstance(words, list) or not words or not all(isinstance(w, str) for w in words):
        return ""
    program = Path(words[0])
    first = ["python", "-m", "fastrot"] if program.name == "__main__.py" else [program.name]
    return shlex.join([*first, *map(clean, words[1:])])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    rows: list[list[str]] = []
    for key, value in tree.items():
        if key in ("command", "folder") and not prefix:
            continue
        name = f"{prefix}{clean(key, 60)}"
        if isinstance(value, Mapping) and not prefix:
            rows += _flat(value, f"{name}: ")
        elif value not in (None, [], {}):
            size = number(tree, "memory_bytes") if key == "memory_bytes" else None
            if size is not None:
                rows.append(["memory", f"{size / 2**30:.1f} GiB"])
            else:
                rows.append([name, plain(value)])
    return rows
