"""Heat maps: a number in every cell; a larger number has a darker cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fastrot.report.charts.svg import WIDTH, drawing, element, hint, label
from fastrot.report.html.text import clean

_LEFT, _TOP, _HEIGHT = 74.0, 40.0, 34.0
_LIGHTEST, _RANGE = 0.05, 0.45  # at most half: text stays readable on light and dark paper
_UNITS_A_LETTER = 6.6


@dataclass(frozen=True)
class Heat:
    """One cell of a map.

    Attributes:
        text: text inside the cell.
        hint: text shown when the pointer rests on the cell.
        shade: from 0 (lightest) to 1 (darkest); None: nothing was measured.
    """

    text: str
    hint: str
    shade: float | None


def heat_chart(
    cells: Sequence[Sequence[Heat | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    row_title: str,
    column_title: str,
) -> Markup:
    """Draw a heat map.

    Args:
        cells: one list per row with one cell per column; None leaves a gap.
        rows: names of the rows.
        columns: names of the columns.
        row_title: what a row stands for.
        column_title: what a column stands for.
    """
    width = (WIDTH - _LEFT - 2) / len(columns)
    fitting = max(3, int(width / _UNITS_A_LETTER))
    parts = [
        label((_LEFT + WIDTH) / 2, 12, clean(column_title, 50), "middle", "soft"),
        label(0, 30, clean(row_title, 12), "start", "soft"),
    ]
    for j, name in enumerate(columns):
        x = _LEFT + (j + 0.5) * width
        parts.append(label(x, 30, clean(name, fitting), "middle", "strong"))
    for i, (name, row) in enumerate(zip(rows, cells, strict=True)):
        y = _TOP + i * _HEIGHT
        parts.append(label(_LEFT - 8, y + _HEIGHT / 2 + 4, clean(name, 10), "end", "strong"))
        for j, heat in enumerate(row):
            box = {"x": _LEFT + j * width + 1, "y": y + 1, "width": width - 2,
                   "height": _HEIGHT - 2}  # fmt: skip
            if heat is None:
                continue
            note = hint(heat.hint)
            if heat.shade is None:
                parts.append(element("rect", note, **box, class_="cell blank"))
            else:
                shade = _LIGHTEST + _RANGE * heat.shade
                parts.append(element("rect", note, **box, fill_opacity=shade, class_="heat s1"))
            middle = _LEFT + (j + 0.5) * width
            text = clean(heat.text, fitting)
            style = "small" if heat.shade is not None else "small soft"
            parts.append(label(middle, y + _HEIGHT / 2 + 4, text, "middle", style))
    return drawing(_TOP + len(rows) * _HEIGHT + 4, *parts)
