"""Decides which measurements may be compared (one environment), and how configurations differ."""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fastrot.benchmarks.sweep.record import CellRecord
from fastrot.report.html.text import plain

EXECUTION = frozenset(
    f"train.{name}"
    for name in ("threads", "micro_batch", "step", "batchnorm", "cuda_graph", "deadline_seconds")
) | {"data.workers"}
"""Settings for how a step is executed, not for what is trained: fastrot chooses them by machine and
ranks, and newer code may choose better."""
_DECIDING = ("system", "python", "processor", "driver", "cuda", "cudnn", "dali", "libjpeg_turbo")


@dataclass(frozen=True)
class Environment:
    """An environment in which cells were measured."""

    name: str  # a letter
    fields: Mapping[str, str]  # properties that must be equal, as text: host, code, GPUs, versions
    cells: tuple[str, ...]  # keys of its cells
    commits: tuple[str, ...]  # recorded commits of fastrot; one hash of the code may have several
    dates: tuple[str, ...]  # dates of the measurements


def fingerprint(record: CellRecord) -> dict[str, str]:
    """Return what must be equal for two measurements to be comparable.

    Cores, threads and memory are not part of it, because cells with more ranks get more of them.
    """
    known = record.record
    gpus, packages = known.get("gpus"), known.get("packages")
    fields = {"host": record.host, "code": record.code}
    if isinstance(gpus, list):
        fields["GPU"] = ", ".join(sorted({plain(gpu) for gpu in gpus}))
    fields |= {name: plain(known[name]) for name in _DECIDING if known.get(name) is not None}
    if isinstance(packages, Mapping):
        fields |= {str(name): plain(version) for name, version in packages.items()}
    return {name: value for name, value in fields.items() if value}


def environments(records: Sequence[CellRecord]) -> list[Environment]:
    """Return the environments of measured cells, the one with the most cells first."""
    groups: dict[tuple[tuple[str, str], ...], list[CellRecord]] = {}
    for record in records:
        groups.setdefault(tuple(fingerprint(record).items()), []).append(record)
    found: list[Environment] = []
    for fields, members in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        cycle, letter = divmod(len(found), len(string.ascii_uppercase))
        name = f"{string.ascii_uppercase[letter]}{cycle or ''}"
        keys = tuple(record.key for record in members)
        commits, dates = (
            tuple(sorted({plain(r.record[key]) for r in members if r.record.get(key) is not None}))
            for key in ("commit", "date")
        )
        found.append(Environment(name, dict(fields), keys, commits, dates))
    return found


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten a configuration into strings by dotted key.

    Absolute paths are reduced to their last component.

    The same file may be in different folders on different machines.
    """
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            is_path = isinstance(value, str) and value.startswith("/")
            found[f"{prefix}{key}"] = PurePosixPath(value).name if is_path else plain(value)
    return found


def changes(
    one: Mapping[str, Any], other: Mapping[str, Any], without: Collection[str] = ()
) -> list[str]:
    """Return what differs between two trees of settings, as ``key old -> new``."""
    before, after = flat(one), flat(other)
    return [
        f"{key} {before.get(key, 'none')} -> {after.get(key, 'none')}"
        for key in dict.fromkeys([*before, *after])
        if key not in without and before.get(key) != after.get(key)
    ]
