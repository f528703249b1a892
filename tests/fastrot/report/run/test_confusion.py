"""The matrix is that of the held-out images: the same as the run's own validation."""

from __future__ import annotations

import re
from pathlib import Path

from fastrot.report.run.files import read_run
from fastrot.report.run.make import make_report


def test_the_matrix_equals_the_recorded_one(run: Path) -> None:
    record = read_run(run).validation[-1]
    assert record["step"] == 6
    text = make_report(run).path.read_text()
    section = text.split('id="confusion"')[1].split("</section>")[0]
    cells = [int(count) for count in re.findall(r"<td>(\d+) \(", section)]
    assert cells == [count for row in record["confusion"] for count in row]
    assert sum(cells) == 4 * 16
    assert f"{100 * record['val_accuracy']:.1f}\u00a0% correct" in section
