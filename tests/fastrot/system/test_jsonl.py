"""Lines of JSON outside of a run (a run's own: tests/fastrot/runs/test_folder.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastrot.system.jsonl import append_json_lines, read_json_lines


def test_damaged_lines_are_handed_over(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\nnot json\n[2]\n{"a": 3}\n{"a": 4')
    left_out: list[bytes] = []
    records = list(read_json_lines(path, left_out=left_out.append))
    assert records == [{"a": 1}, {"a": 3}] == list(read_json_lines(path))
    assert left_out == [b"not json\n", b"[2]\n", b'{"a": 4']
    assert list(read_json_lines(tmp_path / "missing.jsonl", left_out=left_out.append)) == []


def test_records_are_appended_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "results.jsonl", os.write
    append_json_lines(path, [{"a": 1}, {"a": 2}])
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:-4]))  # a full disk
    with pytest.raises(OSError, match="bytes written"):
        append_json_lines(path, [{"a": 3}, {"a": 4}])
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'
