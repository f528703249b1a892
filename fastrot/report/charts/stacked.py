"""Stacked bars with long names: each name above its bar, the parts end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fastrot.report.charts.svg import WIDTH, Scale, drawing, element, hint, label, path
from fastrot.report.html.text import clean

_BAR, _PITCH, _TOP, _RIGHT = 11.0, 33.0, 4.0, 4.0
_LETTERS = 48


@dataclass(frozen=True)
class Part:
    """A part of a bar: class of its colour, length, and text shown under the pointer."""

    style: str
    value: float
    hint: str


@dataclass(frozen=True)
class Stack:
    """One bar.

    Attributes:
        name: text above the bar, on the left.
        text: text above the bar, on the right.
        parts: parts of the bar, starting at zero.
        spread: lowest and highest position of its end; None: not drawn.
    """

    name: str
    text: str
    parts: Sequence[Part]
    spread: tuple[float, float] | None = None


def stacked_chart(stacks: Sequence[Stack]) -> Markup:
    """Draw bars one below the other, all from zero and on one scale."""
    ends = [sum(part.value for part in stack.parts) for stack in stacks]
    ends += [stack.spread[1] for stack in stacks if stack.spread is not None]
    x = Scale(0.0, max(ends, default=0.0) or 1.0, 1.0, WIDTH - _RIGHT)
    drawn = []
    for i, stack in enumerate(stacks):
        y = _TOP + i * _PITCH
        drawn.append(label(0, y + 9, clean(stack.name, _LETTERS)))
        drawn.append(label(WIDTH, y + 9, stack.text, "end", "strong"))
        start, top = 0.0, y + 14
        for part in stack.parts:
            at, width = x(start), max(x(start + part.value) - x(start), 0.5)
            box = {"x": at, "y": top, "width": width, "height": _BAR}
            style = f"bar full {part.style}"
            drawn.append(element("rect", hint(part.hint), **box, class_=style))
            start += part.value
        if stack.spread is not None and stack.spread[1] > stack.spread[0]:
            low, high = x(stack.spread[0]), x(stack.spread[1])
            middle = top + _BAR / 2
            line = path([(low, middle), (high, middle), None, (low, top + 1), (low, top + _BAR - 1),
                         None, (high, top + 1), (high, top + _BAR - 1)])  # fmt: skip
            drawn.append(element("path", d=line, class_="whisker"))
    return drawing(_TOP + len(stacks) * _PITCH, *drawn)
