"""What makes two measurements comparable: their environments, and their configurations.

Cells are compared with each other only within one environment; what differs between two
configurations is told beside the comparison.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fastrot.benchmarks.sweep.record import CellRecord
from fastrot.report.html.text import plain

_DECIDING = ("system", "python", "processor", "driver", "cuda", "cudnn", "dali", "libjpeg_turbo")
EXECUTION = frozenset(
    f"train.{name}"
    for name in ("threads", "micro_batch", "step", "batchnorm", "cuda_graph", "deadline_seconds")
) | {"data.workers"}
"""Settings of how a step is carried out, not of what is trained: fastrot chooses them by the
machine and the ranks, and newer code may choose better."""

Fingerprint = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Environment:
    """What some cells have in common.

    Attributes:
        name: a letter.
        fields: what decides, as text: host, code, GPUs, versions.
        keys: of the cells that were measured in it.
        commits: of fastrot, as recorded; one hash of the code may have several.
        dates: first and last.
    """

    name: str
    fields: Mapping[str, str]
    keys: tuple[str, ...]
    commits: tuple[str, ...]
    dates: tuple[str, ...]


def fingerprint(record: CellRecord) -> Fingerprint:
    """What has to be the same for two measurements to be comparable.

    Cores, threads and memory are not part of it: a cell of more ranks is given more of them.
    """
    known = record.record
    gpus = known.get("gpus")
    packages = known.get("packages")
    fields = {"host": record.host, "code": record.code}
    fields["GPU"] = (
        ", ".join(sorted({plain(gpu) for gpu in gpus})) if isinstance(gpus, list) else ""
    )
    fields |= {name: plain(known.get(name)) for name in _DECIDING if known.get(name) is not None}
    if isinstance(packages, Mapping):
        fields |= {str(name): plain(version) for name, version in packages.items()}
    return tuple((name, value) for name, value in fields.items() if value)


def environments(records: Sequence[CellRecord]) -> list[Environment]:
    """The environments of measured cells, that of most cells first.

    Args:
        records: of cells that are done; what failed says little about where it would have run.
    """
    parts: dict[Fingerprint, list[CellRecord]] = {}
    for record in records:
        parts.setdefault(fingerprint(record), []).append(record)
    ordered = sorted(parts.items(), key=lambda part: (-len(part[1]), part[0]))
    return [
        Environment(
            name=_letter(place),
            fields=dict(print_),
            keys=tuple(record.key for record in members),
            commits=_texts(members, "commit"),
            dates=_texts(members, "date"),
        )
        for place, (print_, members) in enumerate(ordered)
    ]


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """What differs between two environments, one line a field."""
    return [
        f"{name} {one.get(name, 'none')} / {other.get(name, 'none')}"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """A configuration as text by dotted key; of an absolute path only its last part counts."""
    return {key: _text(value) for key, value in _leaves(config)}


def changed(
    one: Mapping[str, Any], other: Mapping[str, Any], without: Collection[str] = ()
) -> dict[str, str]:
    """What differs between two configurations, ``old -> new`` by key."""
    before, after = flat(one), flat(other)
    return {
        key: f"{before.get(key, 'none')} -> {after.get(key, 'none')}"
        for key in dict.fromkeys([*before, *after])
        if key not in without and before.get(key) != after.get(key)
    }


def told(changes: Mapping[str, str]) -> str:
    """Differences on one line."""
    return ", ".join(f"{key} {change}" for key, change in changes.items())


def _letter(place: int) -> str:
    """A, B ... Z, A1, B1 ..."""
    cycle, letter = divmod(place, len(string.ascii_uppercase))
    return string.ascii_uppercase[letter] + (str(cycle) if cycle else "")


def _texts(records: Sequence[CellRecord], name: str) -> tuple[str, ...]:
    found: list[Any] = [record.record.get(name) for record in records]
    return tuple(sorted({plain(text) for text in found if text is not None}))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    """Machines keep the same file in different folders."""
    if isinstance(value, str) and value.startswith("/"):
        return PurePosixPath(value).name
    return plain(value)
