"""Bar charts: groups of horizontal bars, each with its value at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fastrot.report.charts.svg import WIDTH, Scale, drawing, element, hint, label, path

_LEFT, _RIGHT = 62.0, 44.0
_LETTER, _MOST_LEFT = 8.0, 170.0
_BAR, _GAP, _BETWEEN = 13.0, 2.0, 12.0


@dataclass(frozen=True)
class Bar:
    """One bar of a series: ``style`` is the class of its colour; ``open`` draws an outline only."""

    name: str
    style: str
    value: float
    open: bool = False


def bar_chart(groups: Sequence[tuple[str, Sequence[Bar]]]) -> Markup:
    """Draw named groups of bars, in percent, from zero to a round value above the largest."""
    top = max((bar.value for _, bars in groups for bar in bars), default=0.0)
    end = next((edge for edge in (5, 10, 20, 40, 60, 80) if top <= edge), 100)
    longest = max((len(name) for name, _ in groups), default=0)
    left = min(_MOST_LEFT, max(_LEFT, 12 + _LETTER * longest))
    x = Scale(0.0, float(max(end, top)), left, WIDTH - _RIGHT)
    parts, y = [], 8.0
    for name, bars in groups:
        height = len(bars) * (_BAR + _GAP) - _GAP
        parts.append(label(left - 8, y + height / 2 + 4, name, "end", "strong"))
        for bar in bars:
            width = max(x(bar.value) - left, 0.5)
            text = hint(f"{name}, {bar.name}: {bar.value:.2f} %")
            style = f"bar {'open' if bar.open else 'full'} {bar.style}"
            parts.append(element("rect", text, x=left, y=y, width=width, height=_BAR, class_=style))
            parts.append(label(left + width + 5, y + _BAR - 2.5, f"{bar.value:.1f}"))
            y += _BAR + _GAP
        y += _BETWEEN
    base = element("path", d=path([(left, 2), (left, y - _BETWEEN + 4)]), class_="axis")
    return drawing(y, *parts, base)
