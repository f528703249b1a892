"""The measurements of one ``eval`` folder: none of them overwrites another.

A measurement is identified by its key: protocol, mode, the settings that its evaluator reads, and
everything its features depend on (weights, both datasets, transform). Each has its own folder
with ``result.json``, and with ``result-0001.json`` and so on if an earlier version of fastrot had
other scores for the same key. The folders themselves are the list of measurements, so it cannot go
stale; ``index.json`` is a copy made by the last evaluation for users and scripts, never read here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastrot.errors import StorageError
from fastrot.evaluation.identity import key_of_earlier_versions, without
from fastrot.evaluation.result import Result
from fastrot.system.files import make_folder, write_atomic
from fastrot.system.jsonl import read_object

RESULT = "result.json"
INDEX = "index.json"

_LOCK = ".index.lock"
_LOCK_SECONDS = 20.0


@dataclass(frozen=True)
class Measurement:
    """One result on disk.

    Attributes:
        file: file of the result.
        result: the result itself.
        key: 32 hexadecimal digits; equal if the same thing was measured.
        time: time when its scores were computed, ISO 8601 in UTC.
        earlier: a later result with the same key has other scores.
    """

    file: Path
    result: Result
    key: str
    time: str
    earlier: bool = False

    @property
    def name(self) -> str:
        """Return the name of the measurement's folder."""
        return self.file.parent.name

    def to_json(self) -> dict[str, Any]:
        """Return the measurement's entry in the index, as plain values."""
        result = self.result
        return {
            "file": f"{self.name}/{self.file.name}",
            "key": self.key,
            "time": self.time,
            "earlier": self.earlier,
            "protocol": result.protocol,
            "mode": result.label,
            "train": result.data.get("train"),
            "test": result.data.get("test"),
            "weights": result.weights.get("source"),
            "changed": list(result.changed),
            "scores": [[s.name, s.metric, s.value] for s in result.scores],
            "random": result.random and [[s.name, s.metric, s.value] for s in result.random],
            "random_time": result.random_time,
        }


def read_measurements(
    folder: Path, also: Result | None = None
) -> tuple[list[Measurement], list[str]]:
    """Read all results of an ``eval`` folder, including those of earlier versions.

    Args:
        folder: ``eval``.
        also: a result about to be written; an earlier version's result of the same measurement
            gets its key.

    Returns:
        The measurements by name, each latest one before earlier ones with the same key and other
        scores; and one line for each file that cannot be read, saying why.
    """
    found: list[Measurement] = []
    problems: list[str] = []
    for file in sorted(folder.glob("*/result*.json")):
        if not re.fullmatch(r"result(-\d{4,})?\.json", file.name):
            continue
        read = _read(file)
        if isinstance(read, Measurement):
            found.append(read)
        else:
            name = file.parent.name if file.name == RESULT else f"{file.parent.name}/{file.name}"
            problems.append(f"{name}: {read}")
    known = [one.result for one in found] + ([] if also is None else [also])
    keys = {_of_earlier_versions(r, r.earlier_key): r.key for r in known if r.key}
    found = [
        one
        if one.result.key
        else replace(one, key=keys.get(_of_earlier_versions(one.result, one.key), one.key))
        for one in found
    ]
    by_key: dict[str, list[Measurement]] = {}
    # This version's results first: an earlier version's result with the same scores is a duplicate.
    for one in sorted(found, key=lambda one: (bool(one.result.key), one.file.name == RESULT))[::-1]:
        same = by_key.setdefault(one.key, [])
        twins = [i for i, other in enumerate(same) if _scores(one.result) == _scores(other.result)]
        if not twins:
            same.append(one)
        elif not same[twins[0]].result.random and one.result.random:
            same[twins[0]] = replace(
                same[twins[0]], result=_with_random(same[twins[0]].result, one)
            )
    for key, same in by_key.items():
        same.sort(key=lambda one: (one.time, one.file.name == RESULT), reverse=True)
        by_key[key] = [replace(one, earlier=one is not same[0]) for one in same]
    groups = sorted(by_key.values(), key=lambda same: same[0].name)
    return [one for same in groups for one in same], problems


def results_folder(checkpoint: Path) -> Path:
    """Return where the measurements of a run, a checkpoint or a weight file are by default."""
    if checkpoint.is_dir():
        return checkpoint / "eval"
    return checkpoint.parent / "eval" / checkpoint.name.partition(".")[0]


def stored_results(checkpoint: Path) -> list[dict[str, Any]]:
    """Return the latest results beside a run, a checkpoint or a weight file, as plain values.

    Those of a checkpoint include its run's, which may be of other weights (``weights.digest``).
    """
    folders = [results_folder(checkpoint)]
    if checkpoint.parent.name == "checkpoints":
        folders.append(checkpoint.parent.parent / "eval")
    found = [one for folder in folders for one in read_measurements(folder)[0]]
    return [one.result.to_json() for one in found if not one.earlier and not is_at_random(one)]


def is_at_random(one: Measurement) -> bool:
    """Return whether the measurement is of a random initialisation."""
    source = str(one.result.weights.get("source"))
    return one.name.endswith("-random") or source.startswith("random initialisation")


def is_random_of(one: Measurement, other: Measurement) -> bool:
    """Return whether ``one`` measures the same as ``other``, but for a random initialisation."""
    if not is_at_random(one) or is_at_random(other):
        return False
    if not one.result.key and not other.result.key:  # earlier versions named their folders this way
        return one.name == f"{other.name}-random"
    ours, theirs = (
        {
            "protocol": result.protocol,
            "mode": result.label,
            "settings": dict(result.settings),
            "model": result.weights.get("model"),
            "features": without(result.caches, "layers", "weights"),
        }
        for result in (one.result, other.result)
    )
    return ours["model"] is not None and ours == theirs


def save_measurement(folder: Path, name: str, result: Result) -> tuple[Result, int]:
    """Write a result into its folder, keeping an earlier one, and write the index.

    A result without a random column gets that of an earlier result of the same measurement.

    Args:
        folder: ``eval``.
        name: name of the measurement's folder.
        result: the result to write.

    Returns:
        The result as written, and the number of measurements now in the folder.

    Raises:
        StorageError: it cannot be written; the files there before are untouched.
    """
    file = folder / name / RESULT
    try:
        make_folder(file.parent)
        with _locked(folder):
            for one in read_measurements(folder, result)[0]:
                if result.random is None and _lends_random(one, result):
                    result = _with_random(result, one)
            _keep_earlier(file, result)
            text = json.dumps(result.to_json(), indent=1, default=str)
            write_atomic(file, text.encode() + b"\n")
            found = read_measurements(folder)[0]
            index = json.dumps([one.to_json() for one in found], indent=1, default=str)
            write_atomic(folder / INDEX, index.encode() + b"\n")
    except OSError as error:
        raise StorageError(
            f"{file}: cannot be written ({error.strerror or error}); free space and run the same "
            "command again: it continues"
        ) from None
    return result, len(found)


def now() -> str:
    """Return the current time in the format of results, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _of_earlier_versions(result: Result, key: str) -> tuple[str, str, str]:
    """Return what identifies a measurement of earlier versions: its key and its data's paths."""
    return key, str(result.data.get("train")), str(result.data.get("test"))


def modified(file: Path) -> str:
    """Return the time when a file was last written, in the format of results."""
    return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _lends_random(one: Measurement, result: Result) -> bool:
    """Return whether a random column belongs to the same measurement and evaluator."""
    if one.key != result.key or not one.result.random:
        return False
    return _scores(one.result) == _scores(result) or _version(one.result) == _version(result)


def _with_random(result: Result, other: Measurement) -> Result:
    when = other.result.random_time or other.time
    return replace(result, random=other.result.random, random_time=when)


def _keep_earlier(file: Path, result: Result) -> None:
    """Copy the file about to be replaced, unless the new result has the same content."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return
    before = _read(file)
    if isinstance(before, Measurement) and _scores(before.result) == _scores(result):
        same_random = before.result.random is None or result.random == before.result.random
        if same_random and _version(before.result) == _version(result):
            return
    number = 1
    while (kept := file.with_name(f"result-{number:04d}.json")).exists():
        number += 1
    write_atomic(kept, data)


def _version(result: Result) -> tuple[Any, Any]:
    packages = result.record.get("packages")
    version = packages.get("fastrot") if isinstance(packages, Mapping) else None
    return version, result.record.get("commit")


def _scores(result: Result) -> list[tuple[str, str, float]]:
    return [(score.name, score.metric, score.value) for score in result.scores]


def _read(file: Path) -> Measurement | str:
    """Read a result; return what is wrong with its file if that fails."""
    tree = read_object(file)
    if isinstance(tree, str):
        return tree
    try:
        result = _checked(Result.from_json(tree))
        key = result.key or key_of_earlier_versions(result, file.parent.name)
        when = result.time or modified(file)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        return f"not a result ({type(error).__name__}: {error})"
    return Measurement(file, result, key, when)


def _checked(result: Result) -> Result:
    for score in [*result.scores, *(result.random or ())]:
        if not all(isinstance(t, str) for t in (score.name, score.metric, score.layer or "")):
            raise ValueError("a score's name is not text")
        value = score.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            raise ValueError(f"score {score.name!r} has no finite value")
    texts = (result.protocol, result.label, *result.changed, *result.notes)
    more = (result.key, result.earlier_key, result.time, result.random_time or "")
    if not all(isinstance(text, str) for text in (*texts, *more)):
        raise ValueError("its names are not text")
    for part in (result.weights, result.data, result.record, result.settings, result.caches):
        if not isinstance(part, Mapping):
            raise ValueError("a part is not an object")
    return result


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time read and extend the list; the kernel releases a killed one's lock.

    Nothing breaks if the file system has no locks or a holder is stopped: each file is complete.
    """
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)
