"""The manifest of a feature cache: checked when it is read, compared field by field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrot.errors import BadDataError, MismatchError, StorageError, UsageError
from fastrot.system.fingerprint import differing_fields, fingerprint_digest, plain

FORMAT = 1
MANIFEST = "manifest.json"

_LAYER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MAX_JSON_BYTES = 64 * 2**20


@dataclass(frozen=True)
class LayerInfo:
    """Layout of a layer's values in a row: channel-major, flattened from (channels, grid, grid).

    Attributes:
        channels: C.
        grid: side of the pooled map.
        dim: D = C * grid * grid.
        window: how the map was pooled, in words.
    """

    channels: int
    grid: int
    dim: int
    window: str


def layer_name(name: str) -> str:
    """Return the name of a layer if it can be a file name.

    Raises:
        UsageError: the name cannot be a file name.
    """
    if not _LAYER.fullmatch(name) or name in ("labels", "manifest"):
        raise UsageError(
            f"layer {name!r}: a name has up to 64 letters, digits, - and _, begins with a letter "
            "or digit, and is not labels or manifest"
        )
    return name


def check_fingerprint(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the fingerprint of a cache with the requested one.

    Raises:
        MismatchError: they differ; the message names the fields, ``saved -> now``.
    """
    if fields := differing_fields(saved, plain(now)):
        raise MismatchError(
            f"{path}: holds different features: {'; '.join(fields)}; name another folder, or "
            "remove that one"
        )


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of the cache in a folder and check the type of every field.

    Raises:
        UsageError: there is no such folder.
        BadDataError: the manifest is missing or damaged.
        MismatchError: its format is newer.
        StorageError: it cannot be read.
    """
    file = path / MANIFEST
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise BadDataError(f"{file}: larger than {_MAX_JSON_BYTES} bytes, not a manifest")
        tree = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if not path.is_dir():
            raise UsageError(f"{path}: no such feature cache; check the path") from None
        raise BadDataError(
            f"{path}: unfinished, it has no {MANIFEST}; run the command that makes it again to "
            "resume"
        ) from None
    except OSError as error:
        raise StorageError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        raise BadDataError(f"{file}: not JSON; remove {path} and extract again") from None
    if isinstance(tree, dict) and isinstance(tree.get("format"), int) and tree["format"] > FORMAT:
        raise MismatchError(
            f"{file}: format {tree['format']}; this fastrot reads up to {FORMAT}; use a newer "
            "fastrot"
        )
    if problem := _problem(tree):
        raise BadDataError(f"{file}: damaged ({problem}); remove {path} and extract again")
    return dict(tree)


def _problem(tree: Any) -> str | None:
    """Return the first invalid field of a manifest, or None."""
    try:
        labels, layers = tree["labels"], tree["layers"]
        checks = {
            "format": tree["format"] == FORMAT,
            "digest": tree["digest"] == fingerprint_digest(tree["identity"]),
            "num_samples": _is_count(tree["num_samples"]),
            "crops": _is_count(tree["crops"]),
            "layers": len(layers) > 0 and all(_is_layer(*item) for item in layers.items()),
            "labels": labels["shape"][:1] == [tree["num_samples"]]
            and all(map(_is_count, labels["shape"]))
            and [len(labels["shape"]), labels["dtype"]] in ([1, "<i8"], [2, "|i1"])
            and isinstance(labels["xxh3_128"], str),
            "class_names": tree["class_names"] is None
            or all(isinstance(name, str) for name in tree["class_names"]),
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return next((name for name, holds in checks.items() if not holds), None)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_layer(name: str, info: Mapping[str, Any]) -> bool:
    channels, grid, dim = info["channels"], info["grid"], info["dim"]
    return (
        bool(_LAYER.fullmatch(name))
        and all(map(_is_count, (channels, grid, dim)))
        and dim == channels * grid * grid
        and isinstance(info["window"], str)
    )
