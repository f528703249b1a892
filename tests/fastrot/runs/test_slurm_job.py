from __future__ import annotations

from pathlib import Path

import pytest

from fastrot.distributed.slurm import parse_slurm_options
from fastrot.errors import UsageError
from fastrot.runs.slurm_job import made_no_progress, submit_command


@pytest.mark.parametrize(
    ("starts", "now", "stuck"),
    [
        ([], 0, False),
        ([0], 0, False),  # one start alone may have been unlucky
        ([0, 0], 0, True),
        ([0, 0], 5, False),
        ([0, 5], 5, False),
        ([0, 5, 5], 5, True),
        ([5, 5, 9], 9, False),
    ],
)
def test_two_starts_in_a_row_without_a_step(starts: list[int], now: int, stuck: bool) -> None:
    assert made_no_progress(starts, now) is stuck


def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no sbatch here"):
        submit_command(
            ["train"], tmp_path / "run", nodes=1, gpus=1, settings=parse_slurm_options([])
        )
    assert list(tmp_path.iterdir()) == []
