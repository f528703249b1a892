"""Stacked bars: parts side by side, all on one scale."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from fastrot.report.charts.stacked import Part, Stack, stacked_chart
from fastrot.report.charts.svg import WIDTH

SVG = "{http://www.w3.org/2000/svg}"


def test_parts_are_as_long_as_their_values() -> None:
    stacks = [
        Stack("one", "4", [Part("s2", 3.0, "waits"), Part("s1", 1.0, "computes")]),
        Stack("two <b>", "2", [Part("s1", 2.0, "computes")], (1.0, 3.0)),
    ]
    tree = ElementTree.fromstring(stacked_chart(stacks))
    boxes = tree.findall(f"{SVG}rect")
    wide = [float(box.get("width", "")) for box in boxes]
    assert wide[0] == pytest.approx(3 * wide[1], abs=0.02)
    assert wide[2] == pytest.approx(2 * wide[1], abs=0.02)
    starts = [float(box.get("x", "")) for box in boxes]
    assert starts[1] == pytest.approx(starts[0] + wide[0], abs=0.02) and starts[2] == starts[0]
    assert starts[1] + wide[1] <= WIDTH
    assert [box.findtext(f"{SVG}title") for box in boxes] == ["waits", "computes", "computes"]
    assert len(tree.findall(f"{SVG}path")) == 1  # the spread of the second
    assert "two <b>" in [label.text for label in tree.findall(f"{SVG}text")]


def test_no_length_at_all_is_drawn() -> None:
    tree = ElementTree.fromstring(stacked_chart([Stack("none", "0", [Part("s1", 0.0, "")])]))
    assert tree.find(f"{SVG}rect") is not None
