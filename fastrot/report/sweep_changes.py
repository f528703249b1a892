"""Whether two cells were measured with the same settings, by their resolved configurations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from fastrot.report.text import plain

EXECUTION = frozenset(
    f"train.{name}"
    for name in ("threads", "micro_batch", "step", "batchnorm", "cuda_graph", "deadline_seconds")
) | {"data.workers"}
"""Settings of how a step is carried out, not of what is trained: fastrot chooses them by the
machine and the ranks, and newer code may choose better."""


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
