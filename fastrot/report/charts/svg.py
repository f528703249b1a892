"""Drawing in SVG: elements, scales and ticks. Colours come from the page's style sheet.

A drawing is 440 units wide and its text 12 units high: readable at the width of a telephone and,
two side by side, on a desktop screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from fastrot.report.html.text import clean

WIDTH = 440.0


def element(name: str, *children: Markup | str, **attributes: float | str) -> Markup:
    """Return an element; text is cleaned and escaped.

    In attribute names, which never come from data, ``_`` becomes ``-`` and ``class_`` is ``class``.
    """
    named = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _value(value))
        for key, value in attributes.items()
    )
    inner = Markup("").join(
        child if isinstance(child, Markup) else escape(clean(child)) for child in children
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), named, inner)


def drawing(height: float, *children: Markup) -> Markup:
    """Return the root element of a drawing of WIDTH x ``height`` units."""
    return element(
        "svg",
        *children,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_value(WIDTH)} {_value(height)}",
        class_="plot",
        aria_hidden="true",
    )


def label(
    x: float, y: float, text: str, anchor: str = "start", style: str = "", **attributes: float | str
) -> Markup:
    """Return text at a point; ``anchor`` is start, middle or end."""
    return element("text", text, x=x, y=y, text_anchor=anchor, class_=f"t {style}", **attributes)


def hint(text: str) -> Markup:
    """Return the text that a browser shows when the pointer rests on the enclosing element."""
    return element("title", text)


def path(points: Sequence[tuple[float, float] | None]) -> str:
    """Return path data through points; None breaks the line."""
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        parts.append(f"{pen}{_value(point[0])} {_value(point[1])}")
        pen = "L"
    return "".join(parts)


@dataclass(frozen=True)
class Scale:
    """A linear map from values to units of the drawing.

    Attributes:
        low: value drawn at ``start``.
        high: value drawn at ``stop``, larger than ``low``.
        start: position in units of the drawing.
        stop: position in units of the drawing.
    """

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the position of a value, in units of the drawing."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return about ``most`` round values, from at most ``low`` to at least ``high``.

    Example:
        >>> ticks(0.0, 9.3, 5)
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    span = high - low
    if not span > 0 or not math.isfinite(span):
        span = abs(low) or 1.0
        high = low + span
    size = 10.0 ** math.floor(math.log10(span / most))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if span / (size * k) <= most)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _value(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".")
