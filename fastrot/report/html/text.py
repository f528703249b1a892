"""Formatting of strings and numbers for the page; the content of run folders is not trusted."""

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
    """Return a string that is safe to show: invisible characters are replaced.

    Args:
        text: text of a file or a dataset.
        longest: maximum number of characters to keep.

    Example:
        >>> clean("cat" + chr(0x202E) + "god")
        'cat�god'
    """
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(
        c if c in _KEPT or unicodedata.category(c) not in _REPLACED else "\ufffd" for c in cut
    )


def number(record: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number of a record; None if absent, of another type, NaN or too large."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def short(value: float, digits: int = 4) -> str:
    """Format a number with some significant digits, without an exponent where possible.

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
    """Format a number with three significant digits, in thousands or millions if it is large.

    Example:
        >>> compact(8123.4), compact(23456.0), compact(1.5e6)
        ('8,123', '23.5k', '1.5M')
    """
    if abs(value) >= 1e6:
        return f"{short(value / 1e6, 3)}M"
    return f"{short(value / 1e3, 3)}k" if abs(value) >= 1e4 else short(value, 3)


def percent(value: float) -> str:
    """Format a value given in percent, to a tenth."""
    return f"{value:.1f}{_SPACE}%"


def whole_percent(value: float) -> str:
    """Format a round value given in percent, as on an axis."""
    return f"{short(value)}{_SPACE}%"


def plain(value: Any) -> str:
    """Format a JSON or YAML value as one line."""
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
