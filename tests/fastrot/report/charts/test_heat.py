"""Heat maps: one cell a place, darker where it is more, text that fits."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from fastrot.report.charts.heat import Heat, heat_chart

SVG = "{http://www.w3.org/2000/svg}"


def test_cells_lie_in_rows_and_columns() -> None:
    cells = [[Heat("1", "a", 0.0), Heat("9", "b", 1.0)], [Heat("failed", "c", None), None]]
    text = heat_chart(cells, ["x", "y"], ["<u>", "v"], row_title="rows", column_title="columns")
    tree = ElementTree.fromstring(text)
    boxes = tree.findall(f"{SVG}rect")
    assert [box.findtext(f"{SVG}title") for box in boxes] == ["a", "b", "c"]
    assert [box.get("fill-opacity") for box in boxes] == ["0.05", "0.5", None]
    assert boxes[0].get("y") == boxes[1].get("y") != boxes[2].get("y")
    assert boxes[0].get("x") == boxes[2].get("x") != boxes[1].get("x")
    words = [label.text for label in tree.findall(f"{SVG}text")]
    assert {"<u>", "v", "x", "y", "rows", "columns", "failed"} <= set(words)


def test_long_names_are_cut() -> None:
    heat = Heat("1234567890", "", 1.0)
    text = heat_chart([[heat] * 10], ["r" * 99], ["c" * 99] * 10, row_title="", column_title="")
    assert max(map(len, re.findall(r">([rc0-9…]+)<", text))) <= 10
