"""Matrix charts: every cell shows its count and its share of the row; larger shares are darker."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fastrot.report.charts.svg import WIDTH, drawing, element, hint, label

_LEFT, _TOP, _CELL_HEIGHT = 74.0, 44.0, 54.0
_LIGHTEST, _RANGE = 0.03, 0.5  # at most half: text stays readable on light and dark paper


def matrix_chart(
    counts: Sequence[Sequence[int]], names: Sequence[str], *, rows: str, columns: str
) -> Markup:
    """Draw a square matrix of counts.

    Args:
        counts: K rows of K counts.
        names: names of the K classes.
        rows: what a row stands for.
        columns: what a column stands for.
    """
    width = (WIDTH - _LEFT - 4) / len(names)
    parts = [
        label((_LEFT + WIDTH) / 2, 14, columns, "middle", "soft"),
        label(0, 34, rows, "start", "soft"),
    ]
    for j, name in enumerate(names):
        parts.append(label(_LEFT + (j + 0.5) * width, 34, name, "middle", "strong"))
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        y, total = _TOP + i * _CELL_HEIGHT, max(1, sum(row))
        parts.append(label(_LEFT - 10, y + _CELL_HEIGHT / 2 + 4, name, "end", "strong"))
        for j, count in enumerate(row):
            x, share = _LEFT + j * width, count / total
            text = hint(f"{rows} {name}, {columns} {names[j]}: {count:,} of {total:,}")
            box = {"x": x + 1, "y": y + 1, "width": width - 2, "height": _CELL_HEIGHT - 2}
            parts.append(element("rect", **box, class_="cell"))
            heat = _LIGHTEST + _RANGE * share
            middle = x + width / 2
            parts.append(element("rect", text, **box, fill_opacity=heat, class_="heat s1"))
            parts.append(label(middle, y + 26, f"{100 * share:.1f} %", "middle", "strong"))
            parts.append(label(middle, y + 42, f"{count:,}", "middle", "small"))
    return drawing(_TOP + len(names) * _CELL_HEIGHT + 4, *parts)
