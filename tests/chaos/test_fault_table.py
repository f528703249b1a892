"""The table says what was tried, and no more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import fault_table
from tests.chaos.fault_table import FAULTS, as_markdown, read_trials, table
from tests.conftest import FaultLog


def test_a_trial_becomes_a_row(
    fault_log: FaultLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTROT_FAULT_LOG", str(tmp_path / "log"))
    for seconds in (1.0, 2.0, 9.0):
        with fault_log(1) as trial:
            trial.seconds = seconds
    with pytest.raises(AssertionError), fault_log(3) as trial:
        trial.lost = 1
        raise AssertionError("step 2 of 3\nmore")
    with pytest.raises(subprocess.TimeoutExpired), fault_log(3):
        raise subprocess.TimeoutExpired("fastrot", 60)
    rows = {row["row"]: row for row in table(read_trials(tmp_path / "log"))}
    assert rows.keys() == FAULTS.keys()
    assert (rows[1]["tried"], rows[1]["survived"], rows[1]["seconds_median"]) == (3, 3, 2.0)
    assert (rows[3]["tried"], rows[3]["survived"], rows[3]["hangs"]) == (2, 0, 1)
    assert rows[3]["lost_checkpoints"] == 1 and rows[2]["tried"] == 0
    lines = as_markdown(list(rows.values())).splitlines()
    assert len(lines) == 2 + len(FAULTS) and "not tried here" in lines[3]
    command = [sys.executable, fault_table.__file__, str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 1
    assert "not survived: 3 " in done.stdout and "step 2 of 3" in done.stdout


def test_without_a_folder_nothing_is_written(
    fault_log: FaultLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTROT_FAULT_LOG", raising=False)
    monkeypatch.chdir(tmp_path)
    with fault_log(1):
        pass
    assert list(tmp_path.iterdir()) == []
