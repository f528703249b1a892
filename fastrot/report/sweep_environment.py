"""Environments of measurements: cells are compared with each other only within one."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastrot.benchmarks.sweep_record import CellRecord
from fastrot.report.text import plain

_DECIDING = ("system", "python", "processor", "driver", "cuda", "cudnn", "dali", "libjpeg_turbo")

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


def _letter(place: int) -> str:
    """A, B ... Z, A1, B1 ..."""
    turn, letter = divmod(place, len(string.ascii_uppercase))
    return string.ascii_uppercase[letter] + (str(turn) if turn else "")


def _texts(records: Sequence[CellRecord], name: str) -> tuple[str, ...]:
    found: list[Any] = [record.record.get(name) for record in records]
    return tuple(sorted({plain(text) for text in found if text is not None}))
