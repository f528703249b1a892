"""Fingerprints of what a stored result depends on: their hash and their differences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash


def plain(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fingerprint as JSON returns it: tuples become lists, keys become strings.

    Raises:
        TypeError: a value has no JSON form.
        ValueError: a number is not finite.
    """
    tree: dict[str, Any] = json.loads(json.dumps(fingerprint, allow_nan=False))
    return tree


def fingerprint_digest(fingerprint: Mapping[str, Any]) -> str:
    """Return a hash, 32 hexadecimal digits, of all fields, whatever their order.

    Example:
        >>> fingerprint_digest({"a": 1, "b": [2]}) == fingerprint_digest({"b": (2,), "a": 1})
        True
    """
    text = json.dumps(fingerprint, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


def differing_fields(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the fields in which two trees differ, as ``a.b: old -> new``.

    Example:
        >>> differing_fields({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
        ['a.b: 1 -> 3']
    """
    return _differing(saved, now, "")


def _differing(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[str]:
    lines = []
    for key in sorted({*saved, *now}):
        old, new = saved.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += _differing(old, new, f"{prefix}{key}.")
        elif old != new or (key in saved) != (key in now):
            lines.append(f"{prefix}{key}: {_value(saved, key)} -> {_value(now, key)}")
    return lines


def _value(tree: Mapping[str, Any], key: str) -> str:
    return json.dumps(tree[key]).strip('"') if key in tree else "(absent)"
