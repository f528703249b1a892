"""Finished parts of an evaluation on disk: a rerun after a kill resumes, with identical numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastrot.errors import BadDataError, MismatchError, StorageError
from fastrot.system.files import write_atomic
from fastrot.system.fingerprint import differing_fields, plain

_MAX_JSON_BYTES = 2**28


class PartialResults:
    """A folder of results, one per unit of an evaluation, with the fingerprint of the evaluation.

    Args:
        folder: the folder; it is created. None: nothing is saved.
        fingerprint: plain JSON values: settings, caches, seeds. A folder with another fingerprint
            is refused.

    Raises:
        MismatchError: the folder holds results from another evaluation; the message names the
            fields.
        BadDataError: a file in the folder is damaged.
        StorageError: the folder cannot be read or written.

    Example:
        >>> parts = PartialResults(None, {"protocol": "knn"})
        >>> parts.get("layer1") is None
        True
    """

    def __init__(self, folder: Path | None, fingerprint: Mapping[str, Any]) -> None:
        self.folder = folder
        self.fingerprint: dict[str, Any] = plain(fingerprint)
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            saved = _read(folder / "identity.json")
            if saved is None:
                write_atomic(folder / "identity.json", _bytes(self.fingerprint))
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written ({error.strerror or error})") from None
        if saved is not None and (fields := differing_fields(saved, self.fingerprint)):
            raise MismatchError(
                f"{folder}: holds results from another evaluation: {'; '.join(fields)}; name "
                "another --out, or remove that folder"
            )

    def get(self, unit: str) -> dict[str, Any] | None:
        """Return the result of a unit, or None if it is not finished."""
        return None if self.folder is None else _read(self.folder / f"{_file_name(unit)}.json")

    def put(self, unit: str, record: Mapping[str, Any]) -> None:
        """Save the result of a unit.

        Raises:
            StorageError: it cannot be written; an earlier result is untouched.
        """
        if self.folder is None:
            return
        path = self.folder / f"{_file_name(unit)}.json"
        try:
            write_atomic(path, _bytes(record))
        except OSError as error:
            raise StorageError(
                f"{path}: cannot be written ({error.strerror or error}); free space and run the "
                "same command again: it continues"
            ) from None

    def file(self, unit: str, suffix: str) -> Path | None:
        """Return the path for a unit's large state; None if nothing is saved."""
        return None if self.folder is None else self.folder / f"{_file_name(unit)}{suffix}"


def _file_name(unit: str) -> str:
    return "".join(c if c.isalnum() or c in "-=." else "_" for c in unit)


def _bytes(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=1, allow_nan=False).encode() + b"\n"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise BadDataError(f"{path}: larger than {_MAX_JSON_BYTES} bytes; remove it")
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        raise BadDataError(f"{path}: damaged; remove it to compute that part again") from None
    if not isinstance(record, dict):
        raise BadDataError(f"{path}: damaged; remove it to compute that part again")
    return record
