"""Settings of a sweep: a YAML file of axes, and the cells that they span.

An axis is a key of the configuration (``data.workers``, ``train.precision``), or one of

- ``ranks``: number of processes that train together, over all machines;
- ``nodes``: number of machines, a divisor of ``ranks``;
- ``batch_per_rank``: source images per step and rank; ``train.global_batch`` is this times
  ``ranks``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fastrot.config import Config, known_keys, load_config
from fastrot.distributed.slurm import SweepSlurmSettings
from fastrot.errors import UsageError
from fastrot.system.yaml_config import Override, Section, load_settings

FOLDER = "configs/sweep"
_OWN_AXES = ("ranks", "nodes", "batch_per_rank")
Value = bool | int | float | str | None


class SweepSettings(Section):
    """Settings of a sweep."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Name of the sweep and of its jobs."""
    kind: Literal["train", "loader"] = "train"
    """train: the whole trainer. loader: the loader alone."""
    recipe: str | None = None
    """As for fastrot train -c; null: the defaults."""
    set: dict[str, Any] = Field(default={})
    """Settings that all cells share, by key."""
    grid: dict[str, Annotated[list[Value], Field(min_length=1)]]
    """The axes: a list of values per key."""
    exclude: list[dict[str, Value]] = Field(default=[])
    """Cells to omit: those that have all the values of an entry."""
    repeats: Annotated[int, Field(ge=1)] = 3
    """Measurements per cell, one after the other, after the warm-up."""
    seconds: Annotated[float, Field(gt=0)] = 20.0
    """Length of a measurement, seconds."""
    warm_up_steps: Annotated[int, Field(ge=1)] = 20
    """Steps before the first measurement, for compilation, graph capture and caches."""
    deadline_s: Annotated[float, Field(gt=0)] = 900.0
    """Maximum duration of a cell, including start-up, seconds."""
    slurm: SweepSlurmSettings = SweepSlurmSettings()
    """Settings for --cluster slurm."""

    @model_validator(mode="after")
    def _axes(self) -> SweepSettings:
        if not self.grid:
            raise ValueError("grid={} spans nothing; name an axis, e.g. data.workers: [1, 2]")
        for key in (*self.grid, *self.set):
            if key not in (*_OWN_AXES, *known_keys()):
                raise ValueError(
                    f"{key!r} is neither a setting nor one of {', '.join(_OWN_AXES)}; "
                    "`fastrot train --help` describes --set"
                )
        for part in self.exclude:
            if unknown := [key for key in part if key not in self.grid]:
                raise ValueError(f"exclude: not an axis of the grid: {', '.join(unknown)}")
            if not part:
                raise ValueError("exclude: an empty entry would omit every cell")
        if "batch_per_rank" in self.grid and "train.global_batch" in self.grid:
            raise ValueError("batch_per_rank and train.global_batch conflict; keep only one axis")
        return self


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    axes: Mapping[str, Any]  # its value on each axis
    config: Config  # configuration of its run
    ranks: int  # number of processes over all machines
    nodes: int  # number of machines

    @property
    def title(self) -> str:
        """Return the cell's point in the grid, on one line."""
        return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.axes.items())


def load_sweep(name_or_path: str, overrides: Sequence[str] = ()) -> SweepSettings:
    """Read a sweep, by path or by the name of a shipped one.

    Args:
        name_or_path: as for a recipe.
        overrides: ``key=value`` with keys of the sweep (``seconds``, ``slurm.partition``).

    Raises:
        UsageError: unknown file, unknown key, or a value that breaks a rule.
    """
    return load_settings(
        SweepSettings, name_or_path, overrides, folder=FOLDER, what="sweep", whole=True
    )


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of the sweep, and those of its cells."""
    own: list[str] = []
    cells: list[str] = []
    for override in overrides:
        key = override.partition("=")[0].strip()
        is_own = key.startswith("slurm.") or key in SweepSettings.model_fields
        (own if is_own else cells).append(override)
    return own, cells


def cells_of(
    sweep: SweepSettings, *, data: Path | None = None, overrides: Sequence[str] = ()
) -> list[Cell]:
    """Return the cells in the order of the grid, in which the last axis changes fastest.

    Args:
        sweep: the sweep that they belong to.
        data: images to use instead of those in the recipe and the sweep.
        overrides: ``key=value``; they take precedence over the recipe and ``set``.

    Raises:
        UsageError: a cell is impossible: a setting refuses a value, ranks cannot be divided
            equally between nodes, or there is no data.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in sweep.grid:
            raise UsageError(f"--set {override}: {key} is an axis of the sweep; change its grid")
    cells = list(_cells(sweep, data, overrides))
    if not cells:
        raise UsageError(f"sweep {sweep.name}: 'exclude' removes every cell of the grid")
    return cells


def _cells(sweep: SweepSettings, data: Path | None, overrides: Sequence[str]) -> Iterator[Cell]:
    shared: list[Override] = [
        (key, value) for key, value in sweep.set.items() if key not in _OWN_AXES
    ]
    if data is not None:
        shared.append(("data.train", os.path.abspath(data)))
    shared += overrides
    # A cell only trains, and only as long as it is measured.
    shared += [("data.val", None), ("train.max_steps", None), ("train.checkpoint_steps", None)]
    own = {key: value for key, value in sweep.set.items() if key in _OWN_AXES}
    for values in itertools.product(*sweep.grid.values()):
        axes = dict(zip(sweep.grid, values, strict=True))
        if any(part.items() <= axes.items() for part in sweep.exclude):
            continue
        ranks, nodes = (_count(name, {**own, **axes}.get(name, 1)) for name in ("ranks", "nodes"))
        if ranks % nodes:
            raise UsageError(
                f"sweep {sweep.name}: {ranks} ranks on {nodes} nodes cannot be divided equally; "
                f"exclude {{ranks: {ranks}, nodes: {nodes}}}"
            )
        settings = [*shared, *((k, v) for k, v in axes.items() if k not in _OWN_AXES)]
        batch = {**own, **axes}.get("batch_per_rank")
        if batch is not None:
            settings.append(("train.global_batch", _count("batch_per_rank", batch) * ranks))
        config = load_config(sweep.recipe, settings)
        if config.data.train is None:
            raise UsageError(f"sweep {sweep.name}: no images to read; add --data FILE.beton")
        if config.data.progressive:
            raise UsageError(
                f"sweep {sweep.name}: with data.progressive the resolution of a cell would depend "
                "on how long it runs; set data.progressive=[] and make data.resolution an axis"
            )
        yield Cell(axes, config, ranks, nodes)


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name}={value!r} must be a whole number of at least 1")
    return value
