"""Metrics that a kill or a disk has damaged."""

from __future__ import annotations

import json
from pathlib import Path

from fastrot.report.run.files import read_run
from fastrot.report.run.make import make_report

GOOD = {"kind": "train", "step": 1, "epoch": 0.5, "loss": 1.0}


def write_metrics(run: Path, *lines: bytes) -> None:
    run.mkdir(exist_ok=True)
    (run / "status.json").write_text("{}")
    (run / "metrics.jsonl").write_bytes(b"".join(lines))


def test_damaged_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode() + b"\n"
    deep = b'{"kind": ' + b"[" * 100_000 + b"\n"
    write_metrics(tmp_path, good, b"\xff\x00\n", b"[1]\n", deep, good, good[:-9])
    run = read_run(tmp_path)
    assert run.training == [GOOD, GOOD]
    assert "metrics: 3 damaged lines of metrics.jsonl skipped" in run.notes
    assert "metrics: the last line of metrics.jsonl is incomplete and was skipped" in run.notes


def test_whole_lines_leave_no_note(tmp_path: Path) -> None:
    other = b'{"kind": "of a later version", "step": 1}\n'
    write_metrics(tmp_path, json.dumps(GOOD).encode() + b"\n", other)
    assert not [note for note in read_run(tmp_path).notes if note.startswith("metrics")]


def test_values_of_another_type_are_no_points(tmp_path: Path) -> None:
    wrong: list[object] = ["1", None, True, [1], {}, 10**400, float("nan"), float("inf")]
    records = [{**GOOD, "epoch": i, "loss": value} for i, value in enumerate(wrong)]
    records += [{**GOOD, "epoch": value} for value in wrong]
    records += [{**GOOD, "epoch": 100 + i, "time": -1e300, "accuracy": 0.5} for i in range(3)]
    records.append({"kind": "validation", "epoch": 9, "confusion": [[-1] * 4] * 4, "step": "x"})
    write_metrics(tmp_path, *(json.dumps(record).encode() + b"\n" for record in records))
    result = make_report(tmp_path)
    text = result.path.read_text()
    assert "curves" in result.sections and "confusion" not in result.sections
    assert "NaN" not in text and "inf" not in text.split("<main>")[1].split("Settings")[0].lower()
