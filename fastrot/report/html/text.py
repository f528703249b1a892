"""Strings and numbers as the page shows them; what run folders hold is not trusted."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

_LONGEST = 2000
_REPLACED = {"Cc", "Cf", "Cs", "Co", "Cn"}  # control, format (also bidi), surrogates, unassigned
_KEPT = "\n\t"
_SPACE = "\u00a0"  # no line breaks before the sign


def clean(text: str, longest: int = _LONGEST) -> str:
    """A string that can stand in a page: nothing invisible that changes what is around it.

    Args:
        text: of a file or a data set.
        longest: characters that are kept.

    Example:
        >>> clean("cat" + chr(0x202E) + "god")
        'cat�god'
    """
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(
        c if c in _KEPT or unicodedata.category(c) not in _REPLACED else "\ufffd" for c in cut
    )


def number(record: Mapping[str, Any], key: str) -> float | None:
    """A finite number of a record, or None: absent, of another type, NaN, or too large."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def short(value: float, digits: int = 4) -> str:
    """A number to some significant digits, without an exponent where that can be helped.

    Example:
        >>> short(0.04976), short(1234.5), short(3.0)
        ('0.04976', '1,234', '3')
    """
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.2e}"
    text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def compact(value: float) -> str:
    """A number to three digits, in thousands or millions where it has many.

    Example:
        >>> compact(8123.4), compact(23456.0), compact(1.5e6)
        ('8,123', '23.5k', '1.5M')
    """
    if abs(value) >= 1e6:
        return f"{short(value / 1e6, 3)}M"
    return f"{short(value / 1e3, 3)}k" if abs(value) >= 1e4 else short(value, 3)


def percent(value: float) -> str:
    """A value that is in percent already, to a tenth."""
    return f"{value:.1f}{_SPACE}%"


def whole_percent(value: float) -> str:
    """A round value that is in percent already, as at an axis."""
    return f"{short(value)}{_SPACE}%"


def plain(value: Any) -> str:
    """A value of JSON or YAML as one line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    return clean(str(value))
